"""The one exception that means "the user can fix this", and what a disk may say."""

import errno
import os

# Errors of a disk, and the way out.
WAYS_OUT = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    **dict.fromkeys((errno.EIO, errno.ENOENT, errno.ENOTDIR), "see to the disk"),
}


class InputError(ValueError):
    """Bad input: a file, a line, a flag or a combination of them.

    The message is one line that names the file, line or value, the rule it breaks and the way out.
    The command line prints it as ``error: <message>`` and exits with code 2, without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # names in files may hold ends of lines


def first_line(error: BaseException) -> str:
    """What an exception of a library says, as a part of a message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class NonFiniteError(InputError):
    """A model's scores are NaN or infinite: its weights, its adapter or their type are at fault, not the program."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: the model's scores are not finite; its weights or its adapter hold NaN or infinite values "
            "(a diverged training), or they overflow in --base-dtype: give others, or --base-dtype float32"
        )


def check_at_least(*rules: tuple[str, int | None, int]) -> None:
    """Refuse a flag whose value is below its least: rules of (flag, value, least); a value of None is not given.

    Raises:
        InputError: naming the first such flag, its value and the least.
    """
    for flag, value, least in rules:
        if value is not None and value < least:
            raise InputError(f"{flag} {value}: must be at least {least}")


def disk_error(error: BaseException | None) -> int | None:
    """The errno behind an exception, if it is one of `WAYS_OUT`; libraries may have passed it on as text only."""
    while error is not None:
        for code in WAYS_OUT:
            if (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in str(error):
                return code
        error = error.__cause__ or error.__context__
    return None
