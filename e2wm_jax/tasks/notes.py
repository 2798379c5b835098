"""What the user should know of the sets: which could not be made, why, and which are small for the paper's world."""

from collections.abc import Iterator, Mapping, Sequence

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.example import Example
from e2wm_jax.tasks.household import tracking
from e2wm_jax.tasks.household.sets import BY_FILE
from e2wm_jax.tasks.material import COLLECT_PLANS, COLLECT_STORIES, COLLECT_TRACKS, Side, TaskMaterial
from e2wm_jax.worlds.household.homes.scenes import ROBOTHOW

_COMMANDS = {"plans": COLLECT_PLANS, "counting": COLLECT_STORIES}
_OWN_GOALS = "e2wm collect --policy mcts --goals FILE --out DIR"


def is_official(trajectories: Sequence[Trajectory]) -> bool:
    """Whether the episodes are of the world that the official sets are made of; only then are their sizes a measure."""
    return any(ROBOTHOW in trajectory.scene for trajectory in trajectories)


def notes(
    files: Mapping[str, Sequence[Example]],
    wanted: Mapping[str, int],
    material: TaskMaterial,
    *,
    eval_share: float,
    official: bool,
) -> tuple[str, ...]:
    """A line per cause.

    Args:
        files: the sets, empty ones included.
        wanted: how many examples each was to have.
        material: what they are made of.
        eval_share: the share that was to be held out.
        official: whether sizes are to be compared with what was wanted.
    """
    empty = [name for name, examples in files.items() if not examples and wanted[name]]
    found = [*_without_material(empty, material), *_too_little(empty, material, eval_share)]
    if official:
        found += _smaller(files, wanted, empty)
    experienced = len(material.train.tracked) + len(material.held_out.tracked)
    needed = tracking.STORIES * sum(size for name, size in wanted.items() if BY_FILE[name].kind == "tracking")
    if experienced < needed:
        found.append(f"obj_move: {experienced} of {needed} stories are experienced; for more: `{COLLECT_TRACKS}`")
    return tuple(found)


def _without_material(empty: Sequence[str], material: TaskMaterial) -> Iterator[str]:
    """Kinds of sets for which there is no episode at all."""
    kinds = {BY_FILE[name].kind for name in empty}
    if "plans" in kinds and not material.plans:
        yield f"no files of plans: no planned episode reached its goal; for some: `{COLLECT_PLANS}`, `{_OWN_GOALS}`"
    if "counting" in kinds and not (material.train.questions or material.held_out.questions):
        yield f"no files of counting: no random episode asks for it; for some: `{COLLECT_STORIES}`"


def _too_little(empty: Sequence[str], material: TaskMaterial, eval_share: float) -> Iterator[str]:
    """Sides of the split that have too little for some of their files; not those that were to have nothing."""
    sides: dict[str, tuple[Side, float, str]] = {
        "train": (material.train, 1 - eval_share, "or lower --eval-share"),
        "eval": (material.held_out, eval_share, "or raise --eval-share, 1 for evaluation files alone"),
    }
    for side, (made, share, way_out) in sides.items():
        way_out = "" if share == 1 else f", {way_out}"
        sets = [BY_FILE[name] for name in empty if name.startswith(f"{side}/")]
        plans = [one.name for one in sets if one.kind == "plans"]
        counts = [one.name for one in sets if one.kind == "counting"]
        if share and plans and material.plans:
            there = f"{len(made.plans)} plans of {len({one.task for one in made.plans})} activities"
            need = "where prompts show plans of two others and wrong answers come from others"
            yield f"{side}: too little for {', '.join(plans)}: {there}, {need}; collect more goals{way_out}"
        if share and counts and (material.train.questions or material.held_out.questions):
            there = f"{len(made.questions)} questions"
            yield f"{side}: too little for {', '.join(counts)}: {there}; collect more{way_out}"


def _smaller(files: Mapping[str, Sequence[Example]], wanted: Mapping[str, int], empty: Sequence[str]) -> Iterator[str]:
    for kind, command in _COMMANDS.items():
        sizes = [
            f"{name} {len(examples)} of {wanted[name]}"
            for name, examples in files.items()
            if len(examples) < wanted[name] and name not in empty and BY_FILE[name].kind == kind
        ]
        if sizes:
            yield f"smaller than asked for: {', '.join(sizes)}; for more: `{command}`"
