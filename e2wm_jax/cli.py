"""The `e2wm` command: one line per step of the flow.

Results go to stdout (`--json`: one JSON object as its last line), progress and messages to stderr.  Exit codes: 0 done,
2 bad input or usage (one line `error: ...`), 130 interrupted with what was done kept, 1 anything else.
"""

import contextlib
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2wm_jax import __version__
from e2wm_jax.commands import COMMANDS, command_of, overview, settings_class
from e2wm_jax.errors import InputError
from e2wm_jax.options.parsing import Option, document, first_sentence, introduction, missing, one_form, options_of
from e2wm_jax.running.allocator import keep_freed_memory
from e2wm_jax.running.compilation import say_compilations
from e2wm_jax.running.compilation_cache import keep_compiled
from e2wm_jax.running.environment import check_paths, check_xla_flags, trust_own_precision
from e2wm_jax.running.failures import explained
from e2wm_jax.running.progress import busy, one_run
from e2wm_jax.storage.files import json_text

# Of every command, and no settings of it.
JSON, PRINT_CONFIG, CONFIG, NO_CACHE = "--json", "--print-config", "--config", "--no-compilation-cache"


def program() -> int:
    """The whole process is one command: `main`, with an allocator for arrays that come and go, streams that take any
    text, and programs kept that were compiled."""
    keep_freed_memory()
    _take_any_text()
    warnings.formatwarning = _warning
    keep_compiled(NO_CACHE not in sys.argv)
    trust_own_precision()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with one_run():
            return _dispatch(words)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, MemoryError) as error:  # of a run that went wrong, not of the program
        print(f"error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 1
    except SystemExit:  # tyro after --help
        return 0
    except KeyboardInterrupt:
        print("interrupted; what was done is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`): nothing more to say, and nothing to flush at exit.
        sys.stdout = io.StringIO()
        return 0


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"e2wm {__version__}")
        return 0
    if words[:1] == ["completion"]:
        from e2wm_jax.completion import script

        print(script(words[1:]))
        return 0
    asked = [word for word in words if word not in ("-h", "--help", "help")]
    name = command_of(asked if words[:1] == ["help"] else words)
    if name is None:
        return _without_command(asked, len(asked) < len(words) or not words)
    rest = asked[len(name.split()) :] if words[0] == "help" else words[len(name.split()) :]
    as_json, as_config = JSON in rest, PRINT_CONFIG in rest
    rest = [word for word in rest if word not in (JSON, PRINT_CONFIG, NO_CACHE)]
    settings = _parse(name, [*rest, "--help"] if words[0] == "help" else rest)
    if as_config:
        print(_config(settings))
        return 0
    check_paths(settings)
    if getattr(settings, "columns", ""):
        from e2wm_jax.data.source import check_columns

        check_columns(settings)
    try:
        return _run(name, settings, as_json)
    except Exception as error:
        if (told := explained(error, settings)) is None:
            raise
        raise told from error


def _without_command(words: list[str], asked_for_help: bool) -> int:
    """The overview, of a family too; anything else is no command.

    Raises:
        InputError: naming it.
    """
    family = any(name.startswith(f"{' '.join(words)} ") for name in COMMANDS)
    if not words or (family and asked_for_help):
        print(overview(" ".join(words)))
        return 0
    given = [word for word in words[:2] if not word.startswith("-")] or words[:1]
    known = [name for name in COMMANDS if name.startswith(f"{given[0]} ")] or COMMANDS
    raise InputError(f"unknown command {' '.join(given)!r}; commands: {', '.join(known)}")


def _run(name: str, settings: Any, as_json: bool) -> int:
    """Run the command and print its result; the exit code."""
    module_name, _, function = COMMANDS[name].function.rpartition(".")
    with busy("loading the program"):
        if name != "doctor":  # which reports it
            check_xla_flags()
        module = importlib.import_module(f"e2wm_jax.{module_name}")
    if "jax" in sys.modules:
        say_compilations()
    result: dict[str, Any] = getattr(module, function)(settings)
    if as_json:
        print(json_text(result))
    else:
        getattr(module, "show", _show)(result)
    print(end="", flush=True)  # here it may fail as all else may, at exit it would be noise
    code: int = getattr(module, "exit_code", lambda _: 0)(result)
    return code


def _parse(name: str, words: list[str]) -> Any:
    """Settings from words, over those of --config; what is wrong is one line.

    Raises:
        InputError: naming command and option.
    """
    import tyro

    settings = settings_class(name)
    config, words = _config_file(settings, words)
    document(settings)
    try:
        if {"-h", "--help"} & set(words):
            words, config = ["--help"], None
        else:
            words = one_form(settings, words)
            if config is None and (option := missing(settings, words)):
                raise InputError(f"{_shown(option)} is missing: {first_sentence(option)}")
    except InputError as error:
        raise InputError(f"e2wm {name}: {error}") from None
    default = {} if config is None else {"default": _from_file(settings, config, words, tyro.MISSING)}
    summary, more = introduction(settings)  # tyro would run the lines of the rest together
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(settings, prog=f"e2wm {name}", description=summary, args=words, **default)
    except SystemExit as stop:
        if stop.code in (0, None):
            print(f"\n{more}" if more else "")
            raise
        raise InputError(f"e2wm {name}: {_complaint(settings, words, complaint.getvalue())}") from None


def _config_file(settings: type, words: list[str]) -> tuple[Path | None, list[str]]:
    """--config and the other words; a command with an option of that name has it as any other.

    Raises:
        InputError: if it is given twice, or without a file.
    """
    if any(option.name == "config" for option in options_of(settings)):
        return None, words
    found, rest = [], list(words)
    while at := next((n for n, word in enumerate(rest, 1) if word.partition("=")[0] == CONFIG), 0):
        _, equals, value = rest[at - 1].partition("=")
        found += [value] if equals else rest[at : at + 1]
        del rest[at - 1 : at + (not equals)]
        if not found or found[-1].startswith("--"):
            raise InputError(f"{CONFIG} needs a TOML or JSON file with options, such as a run's config.json")
    if len(found) > 1:
        raise InputError(f"{CONFIG} is given twice: {' and '.join(found)}; put the options into one file")
    return (Path(found[0]) if found else None), rest


def _from_file(settings: type, path: Path, words: list[str], unset: Any) -> Any:
    """The settings of a --config file, to be the defaults of what words do not say.

    Raises:
        InputError: also for an option that is required and in neither.
    """
    from e2wm_jax.options.files import read_settings

    default = read_settings(settings, path, unset)
    there = {word.partition("=")[0] for word in words}
    for option in options_of(settings):
        if option.required and f"--{option.name}" not in there and getattr(default, option.field.name, 0) is unset:
            raise InputError(
                f"{path}: {option.name} is missing, and no {_shown(option)} is given: {first_sentence(option)}"
            )
    return default


def _shown(option: Option) -> str:
    return option.name.upper() if option.positional else f"--{option.name}"


def _config(settings: Any) -> str:
    """The resolved settings as TOML; a command whose files hold more than settings says what."""
    from e2wm_jax.options.files import as_toml, plain, toml

    resolved = getattr(sys.modules[type(settings).__module__], "resolved", None)
    return as_toml(settings) if resolved is None else toml(plain(resolved(settings)))


def _complaint(settings: type, words: list[str], boxed: str) -> str:
    """What tyro says of a value that it cannot read, short."""
    text = _unboxed(boxed)
    found = re.search(r"(?:Error parsing|for argument) '?--([\w.-]+)", text)
    option = next((one for one in options_of(settings) if found and one.name == found[1]), None)
    if option is None:
        return text
    at = next(n for n, word in enumerate(words) if word.partition("=")[0] == f"--{option.name}")
    until = next((n for n in range(at + 1, len(words)) if words[n].startswith("--")), len(words))
    return f"{' '.join(words[at:until])}: {option.expects}"


def _unboxed(text: str) -> str:
    """One line from a colored box: without its title, frame and rules (of dashes where the locale has no lines)."""
    lines = [line.strip(" │|") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines[1:] if re.search(r"\w", line)))


def _take_any_text() -> None:
    """Output that an ASCII stream has not is written as escapes: nobody loses a result to a locale.  What is written to
    a stream that is closed goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours is a line for people, that of a library names its place."""
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    return f"warning: {message}\n" if ours else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _show(result: dict[str, Any]) -> None:
    """Results as a two-column table."""
    width = max(map(len, result), default=0)
    for key, value in result.items():
        shown = f"{value:.6g}" if isinstance(value, float) else value
        print(f"{key:<{width}}  {shown}")
