"""Names of endless data: "online:count" stands for counting stories that are made while the model reads them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import parse_qsl

from e2wm_jax.errors import InputError

if TYPE_CHECKING:
    from e2wm_jax.tasks.household.sets import TaskSet

PREFIX = "online:"
Search = Literal["mcts", "best-first"]


@dataclass(frozen=True)
class OnlineTask:
    """A task whose examples are made on demand: example i of a seed is always the same one."""

    name: str  # "online:count?scene=a.json"
    task: str  # its set: "count"
    scenes: tuple[str, ...] = ()  # count: to explore; without any, the initial graphs of RobotHow
    search: Search = "best-first"  # finds twice as many of the goals as E2WM's with so few simulations
    simulations: int = 200  # plan_gen, act_recog: of each search; few, and superfluous moves are then left out
    dialect: str = "vh23"
    exclude: str = ""  # plan_gen, act_recog: a directory of `e2wm tasks`, whose evaluation sets are left alone

    @property
    def items_per_epoch(self) -> int:
        """Examples that count as one pass, as many as the official file has; there is no end to them."""
        return _sets()[self.task].size


def parse_online(word: str) -> list[OnlineTask]:
    """The tasks of "online:count", "online:plan_gen?simulations=500", "online:count?scene=a.json&scene=b.json",
    "online:plan_gen?exclude=tasks" or "online:all", which is all four.

    Raises:
        InputError: for an unknown task or option, a value out of range, or a directory that holds nothing out.
    """
    name, _, query = word.removeprefix(PREFIX).partition("?")
    if name == "all":
        if query:
            raise InputError(f"--data {word}: options belong to one task; name the tasks, e.g. online:count?{query}")
        return [OnlineTask(f"{PREFIX}{task}", task) for task in _sets()]
    if name not in _sets():
        raise InputError(f"--data {word}: no online task {name!r}; choose one of {', '.join(_sets())}, all")
    return [_with_options(word, name, query)]


def _sets() -> dict[str, "TaskSet"]:
    """The sets that can be made on demand; here, for the import of training needs no world."""
    from e2wm_jax.tasks.household.sets import ONLINE

    return ONLINE


def _with_options(word: str, task: str, query: str) -> OnlineTask:
    options: dict[str, list[str]] = {}
    known = _sets()[task].online or ()
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known or not value:
            offered = ", ".join(known) or "none"
            raise InputError(f"--data {word}: no option {key}={value}; options of {task}: {offered}")
        options.setdefault(key, []).append(value)
    for key, values in options.items():
        if key != "scene" and len(values) > 1:
            raise InputError(f"--data {word}: {key} is given {len(values)} times; give it once")
    simulations = options.get("simulations", ["200"])[0]
    if not simulations.isdecimal() or int(simulations) < 1:
        raise InputError(f"--data {word}: simulations={simulations}: must be a whole number of at least 1")
    search = next((one for one in get_args(Search) if one == options.get("search", ["best-first"])[0]), None)
    if search is None:
        raise InputError(f"--data {word}: search={options['search'][0]}: choose one of {', '.join(get_args(Search))}")
    exclude = options.get("exclude", [""])[0]
    if exclude:
        from e2wm_jax.data.online.held_out import check_folder  # here: the import of training needs no world

        check_folder(exclude, f"--data {word}")
    return OnlineTask(
        name=word,
        task=task,
        scenes=tuple(options.get("scene", ())),
        search=search,
        simulations=int(simulations),
        dialect=options.get("dialect", ["vh23"])[0],
        exclude=exclude,
    )
