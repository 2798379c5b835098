"""Names of endless data: "online:count" stands for counting stories that are made while the model reads them."""

from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import parse_qsl

from e2wm_jax.errors import InputError

PREFIX = "online:"
TaskName = Literal["plan_gen", "act_recog", "count", "obj_move"]
Search = Literal["mcts", "best-first"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
# What an epoch takes from a task, so that mixtures have the proportions of the official files.
_ITEMS = {"plan_gen": 1659, "act_recog": 1659, "count": 1000, "obj_move": 1000}
_OPTIONS: dict[TaskName, tuple[str, ...]] = {
    "plan_gen": ("search", "simulations", "dialect", "exclude"),
    "act_recog": ("search", "simulations", "dialect", "exclude"),
    "count": ("scene", "dialect"),
    "obj_move": (),
}


@dataclass(frozen=True)
class OnlineTask:
    """A task whose examples are made on demand: example i of a seed is always the same one."""

    name: str  # "online:count?scene=a.json"
    task: TaskName
    scenes: tuple[str, ...] = ()  # count: to explore; without any, the initial graphs of RobotHow
    search: Search = "best-first"  # finds twice as many of the goals as E2WM's with so few simulations
    simulations: int = 200  # plan_gen, act_recog: of each search; few, and superfluous moves are then left out
    dialect: str = "vh23"
    exclude: str = ""  # plan_gen, act_recog: a directory of `e2wm tasks`, whose evaluation sets are left alone

    @property
    def items_per_epoch(self) -> int:
        """Examples that count as one pass; there is no end to them."""
        return _ITEMS[self.task]


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
        return [OnlineTask(f"{PREFIX}{task}", task) for task in TASKS]
    for task in TASKS:
        if task == name:
            return [_with_options(word, task, query)]
    raise InputError(f"--data {word}: no online task {name!r}; choose one of {', '.join(TASKS)}, all")


def _with_options(word: str, task: TaskName, query: str) -> OnlineTask:
    options: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _OPTIONS[task] or not value:
            offered = ", ".join(_OPTIONS[task]) or "none"
            raise InputError(f"--data {word}: no option {key}={value}; options of {task}: {offered}")
        options.setdefault(key, []).append(value)
    for key, values in options.items():
        if key != "scene" and len(values) > 1:
            raise InputError(f"--data {word}: {key} is given {len(values)} times; give it once")
    simulations = options.get("simulations", ["200"])[0]
    if not simulations.isdecimal() or int(simulations) < 1:
        raise InputError(f"--data {word}: simulations={simulations}: must be a whole number of at least 1")
    search = next((known for known in get_args(Search) if known == options.get("search", ["best-first"])[0]), None)
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
