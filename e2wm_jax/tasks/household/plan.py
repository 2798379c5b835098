"""Plan generation: from planned episodes to "How to ...?" prompts with two solved examples; and the way back, from a
plan to the name of its activity."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from e2wm_jax.experience.trajectory import Trajectory, final_change
from e2wm_jax.tasks.example import Generation
from e2wm_jax.tasks.household.sentences import condition_sentences, plan_text, words
from e2wm_jax.tasks.source import Source, source_of
from e2wm_jax.worlds.household.facts import edge_fact, split_fact, without_closeness

_IN_A_ROOM = edge_fact("character", "INSIDE", "")


@dataclass(frozen=True)
class TaskPlan:
    """One solved task as text, with the goal it reaches."""

    task: str  # "write an email"
    question: str  # "How to write an email? Given items include ..."
    text: str  # "Walk to home office. ..."
    goal: frozenset[str]
    items: tuple[str, ...] = ()  # class names, each once
    conditions: tuple[str, ...] = ()  # facts at the beginning, in the order of the question
    change: frozenset[str] = frozenset()  # facts that are new at the end
    source: Source | None = field(default=None, compare=False)  # the episode, where it is known

    @property
    def aim(self) -> frozenset[str]:
        """What makes the goal different from others: the goal without closeness, as in `select`."""
        return without_closeness(self.goal)


def select(trajectories: Iterable[Trajectory], *, achieved_share: float = 1.0) -> tuple[list[TaskPlan], Counter[str]]:
    """Plans of the episodes that reached their goal.

    What the character must be CLOSE to is left out of account: RobotHow's goals list whatever the demonstrator passed,
    and in the VirtualHome dialect vh23 each walk ends all earlier closeness, so that half of them cannot hold together.
    Where a goal asks for nothing else than closeness, or the room to be in, its plan is a walk that does not do what
    the activity is called: it is no plan to learn from.

    Args:
        trajectories: episodes of any policy.
        achieved_share: the least share of goal predicates that must hold at the end; 1 is the whole goal.

    Returns:
        The plans in the order of the episodes, and how many episodes were kept or dropped, by reason.
    """
    plans = []
    outcome: Counter[str] = Counter()
    for trajectory in trajectories:
        reason = _why_not(trajectory, achieved_share)
        outcome[reason or "used"] += 1
        if reason is None and trajectory.task is not None:
            items = tuple(dict.fromkeys(item for item in trajectory.items if item != "character"))
            plans.append(
                TaskPlan(
                    task=trajectory.task,
                    question=question(trajectory.task, items, condition_sentences(trajectory.conditions)),
                    text=plan_text(trajectory.steps),
                    goal=frozenset(trajectory.goal),
                    items=items,
                    conditions=trajectory.conditions,
                    change=final_change(trajectory),
                    source=source_of(trajectory),
                )
            )
    return plans, outcome


def _why_not(trajectory: Trajectory, achieved_share: float) -> str | None:
    if trajectory.policy == "random":
        return "not planned"
    if trajectory.task is None or not trajectory.goal:
        return "without task or goal"
    wanted = without_closeness(trajectory.goal)
    if all(split_fact(fact)[1] == "CLOSE" or fact.startswith(_IN_A_ROOM) for fact in wanted):
        return "goal of closeness or a room alone"
    if len(wanted & set(trajectory.achieved)) < achieved_share * len(wanted):
        return "goal not achieved"
    return None if plan_text(trajectory.steps) else "without a successful step"


def question(task: str, items: Iterable[str], sentences: Iterable[str]) -> str:
    """The task, the class names of its items and the initial conditions as one line; empty parts are left out."""
    listed = ", ".join(map(words, items))
    return " ".join([f"How to {task}?", *([f"Given items include {listed}."] if listed else []), *sentences])


def by_task(plans: Iterable[TaskPlan]) -> dict[str, list[TaskPlan]]:
    """The plans under their tasks, tasks in order of first appearance."""
    grouped: dict[str, list[TaskPlan]] = {}
    for plan in plans:
        grouped.setdefault(plan.task, []).append(plan)
    return grouped


def shots(pool: dict[str, list[TaskPlan]], target: TaskPlan, *, count: int, rng: random.Random) -> list[TaskPlan]:
    """`count` solved examples from different tasks, none of them the target's and none with the target's plan.

    Tasks are drawn uniformly, then an item of the task, as in the official files. Fewer come back where there are
    not enough other tasks.
    """
    chosen: list[TaskPlan] = []
    tasks = [task for task in pool if task != target.task]
    rng.shuffle(tasks)
    for task in tasks:
        candidates = [plan for plan in pool[task] if plan.text not in {target.text, *(other.text for other in chosen)}]
        if candidates and len(chosen) < count:
            chosen.append(rng.choice(candidates))
    return chosen


def targets(
    plans: Sequence[TaskPlan],
    *,
    key: str,
    shot_count: int,
    size: int,
    rng: random.Random,
    tasks: Collection[str] | None = None,
) -> Iterator[list[TaskPlan]]:
    """Blocks [example, ..., target] for at most `size` targets, each distinct (task or question, plan) pair once.

    Args:
        plans: one split's plans.
        key: the attribute that makes a target distinct together with its plan text: "question" or "task".
        shot_count: solved examples in front of the target; a target without enough of them is left out.
        size: the most targets wanted.
        rng: decides order and examples.
        tasks: the tasks of the targets, examples are of any task; None for all.
    """
    distinct = list({(getattr(plan, key), plan.text): plan for plan in plans}.values())
    rng.shuffle(distinct)
    pool = by_task(distinct)
    asked = [plan for plan in distinct if tasks is None or plan.task in tasks]
    blocks = ([*shots(pool, plan, count=shot_count, rng=rng), plan] for plan in asked)
    full = (block for block in blocks if len(block) == shot_count + 1)
    return (block for _, block in zip(range(size), full, strict=False))


def plan_gen(
    plans: Sequence[TaskPlan],
    *,
    size: int,
    rng: random.Random,
    tasks: Collection[str] | None = None,
    reword: Callable[[list[TaskPlan]], list[TaskPlan]] = list,
) -> list[Generation]:
    """Two-shot plan generation: the official ``Q: How to ...? / A: ...`` blocks joined by one newline.

    Args:
        plans: one split's plans.
        size: the most examples wanted.
        rng: decides order and solved examples.
        tasks: the tasks to ask about; None for all.
        reword: what becomes of the plans of one prompt, the target last, before they are written down.
    """
    examples = []
    for block in targets(plans, key="question", shot_count=2, size=size, rng=rng, tasks=tasks):
        *solved, target = reword(block)
        lines = [f"Q: {plan.question}\nA: {plan.text}" for plan in solved]
        examples.append(Generation("\n".join([*lines, f"Q: {target.question}\nA:"]), target.text, target.source))
    return examples


_ACTIVITY_BLOCK = "Given a household activity plan as follows:\n{plan}\nQ: What is the name of the activity?\nA:"


def act_recog(plans: Sequence[TaskPlan], *, size: int, rng: random.Random) -> list[Generation]:
    """Two-shot activity recognition in the official training form: blocks separated by a blank line."""
    examples = []
    for *solved, target in targets(plans, key="task", shot_count=2, size=size, rng=rng):
        blocks = [_ACTIVITY_BLOCK.format(plan=plan.text) + f" {plan.task}" for plan in solved]
        examples.append(Generation("\n\n".join([*blocks, _ACTIVITY_BLOCK.format(plan=target.text)]), target.task))
    return examples
