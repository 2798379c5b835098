"""The one exception that means "the user can fix this"."""


class InputError(ValueError):
    """Bad input: a file, a line, a flag or a combination of them.

    The message is one line that names the file, line or value, the rule it breaks and the way out.
    The command line prints it as ``error: <message>`` and exits with code 2, without a traceback.
    """


def check_at_least(*rules: tuple[str, int | None, int]) -> None:
    """Refuse a flag whose value is below its least: rules of (flag, value, least); a value of None is not given.

    Raises:
        InputError: naming the first such flag, its value and the least.
    """
    for flag, value, least in rules:
        if value is not None and value < least:
            raise InputError(f"{flag} {value}: must be at least {least}")
