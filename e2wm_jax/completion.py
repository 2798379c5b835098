"""`e2wm completion bash`: what a shell offers behind `e2wm` and its commands."""

from collections.abc import Sequence

from e2wm_jax.commands import COMMANDS, settings_class
from e2wm_jax.errors import InputError
from e2wm_jax.options.parsing import options_of

_SHELLS = ("bash", "zsh")
_EVERYWHERE = ("--help", "--json", "--config", "--print-config", "--no-compilation-cache")
_SCRIPT = """\
_e2wm() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}"
  case "$command" in {families}) command="$command ${{COMP_WORDS[2]}}" ;; esac
  case "$command" in
{cases}
    *) COMPREPLY=() ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{first}" -- "$word")); fi
  if [ "$COMP_CWORD" -eq 2 ]; then
    case "${{COMP_WORDS[1]}}" in
{seconds}
    esac
  fi
}}
complete -o default -F _e2wm e2wm"""


def script(words: Sequence[str]) -> str:
    """A shell's completions of the whole program: commands, then options; values are completed as file names.

    Raises:
        InputError: for a shell that there is none for.
    """
    if len(words) != 1 or words[0] not in _SHELLS:
        raise InputError(f"e2wm completion {' '.join(words)}: give one of {', '.join(_SHELLS)}")
    first = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    families = [
        name for name in first if name not in COMMANDS or any(other.startswith(f"{name} ") for other in COMMANDS)
    ]
    seconds = {family: [name.split()[1] for name in COMMANDS if name.startswith(f"{family} ")] for family in families}
    offer = 'COMPREPLY=($(compgen -W "{}" -- "$word")) ;;'.format
    filled = _SCRIPT.format(
        families="|".join(families),
        cases="\n".join(
            f'    "{name}") COMPREPLY=($(compgen -W "{_options(name)}" -- "$word")) ;;' for name in COMMANDS
        ),
        first=" ".join([*first, "completion", "help"]),
        seconds="\n".join(f"      {family}) {offer(' '.join(names))}" for family, names in seconds.items()),
    )
    return filled if words[0] == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{filled}"


def _options(name: str) -> str:
    options = [option for option in options_of(settings_class(name)) if not option.positional]
    names = [f"--{option.name}" for option in options]
    names += [f"--{option.opposite}" for option in options if option.switch]
    return " ".join(dict.fromkeys([*names, *_EVERYWHERE]))
