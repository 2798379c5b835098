"""The one exception that means "the user can fix this"."""


class InputError(ValueError):
    """Bad input: a file, a line, a flag or a combination of them.

    The message is one line that names the file, line or value, the rule it breaks and the way out.
    The command line prints it as ``error: <message>`` and exits with code 2, without a traceback.
    """
