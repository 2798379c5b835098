"""From episodes to the two sides of the split: plans, counting stories and tracking stories to train on or to ask."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household import counting, knowledge, plan, tracking
from e2wm_jax.tasks.household.counting import CountQuestion
from e2wm_jax.tasks.household.inference import told
from e2wm_jax.tasks.household.knowledge import Activity
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.household.tracking import Event, Story
from e2wm_jax.tasks.split import split, whole_names
from e2wm_jax.worlds.household.actions import parse_action

COLLECT_PLANS = "e2wm collect --policy mcts --goals robothow --out DIR"
COLLECT_TRACKS = "e2wm collect --policy random --style track --scene procedural --episodes 6500 --out DIR"
COLLECT_STORIES = "e2wm collect --policy random --episode-length 40 --out DIR"


@dataclass(frozen=True)
class Side:
    """One side of the split."""

    plans: list[TaskPlan]
    questions: list[CountQuestion]
    tracked: list[Story]


@dataclass(frozen=True)
class TaskMaterial:
    """What all files are made of."""

    train: Side
    held_out: Side
    unseen: frozenset[str]  # tasks of which train has no plan
    plans: list[TaskPlan]  # of both sides
    known: dict[str, Activity]  # by all episodes, those too that failed
    episodes: dict[str, int]  # what became of the episodes: "used for plans", "goal not achieved", ...

    def side(self, name: str) -> Side:
        """Of "train" or "eval"."""
        return self.train if name == "train" else self.held_out


def gather(
    trajectories: Sequence[Trajectory], *, seed: int, eval_share: float, unseen_share: float, achieved_share: float
) -> TaskMaterial:
    """Select what can be used and split it; arguments as in `build.build`.

    Raises:
        InputError: if an episode is malformed, or no episode can be used.
    """
    for trajectory in trajectories:
        _check(trajectory)
    plans, planned = plan.select(trajectories, achieved_share=achieved_share)
    explored = [trajectory for trajectory in trajectories if trajectory.policy == "random"]
    asked = [
        counting.questions(trajectory, random.Random(f"{seed}/parts/{trajectory.id}"))
        for trajectory in explored
        if not tracking.is_tracked(trajectory)
    ]
    followed = [
        tracking.story_of(trajectory, random.Random(f"{seed}/names/{trajectory.id}"))
        for trajectory in explored
        if tracking.is_tracked(trajectory)
    ]
    tracked = [story for story in followed if tracking.askable(story)]
    episodes = _outcomes(planned, len(trajectories), asked, followed, len(tracked))
    questions = [question for group in asked for question in group]
    if not plans and not questions and not tracked:
        listing = ", ".join(f"{number} {reason}" for reason, number in episodes.items()) or "no episodes"
        raise InputError(
            f"no episode can be used ({listing}); collect some with `{COLLECT_PLANS}` or `{COLLECT_STORIES}`"
        )
    unseen = whole_names(
        plans,
        _plan_keys,
        lambda one: one.task,
        share=unseen_share,
        room=round(eval_share * len(plans)),
        rng=random.Random(f"{seed}/split/tasks"),
    )
    rng = random.Random(f"{seed}/split/plans")
    train_plans, eval_plans = split(
        plans, _plan_keys, eval_share=eval_share, rng=rng, held_out=lambda one: one.task in unseen
    )
    rng = random.Random(f"{seed}/split/stories")
    train_questions, eval_questions = split(questions, _question_keys, eval_share=eval_share, rng=rng)
    rng = random.Random(f"{seed}/split/tracked")
    train_tracked, eval_tracked = split(tracked, _story_keys, eval_share=eval_share, rng=rng)
    return TaskMaterial(
        train=Side(train_plans, train_questions, train_tracked),
        held_out=Side(eval_plans, eval_questions, eval_tracked),
        unseen=unseen,
        plans=plans,
        known=knowledge.activities(trajectories),
        episodes=episodes,
    )


def _check(trajectory: Trajectory) -> None:
    """Every line can be read and every node has a class, so that later steps need not ask."""
    for step in trajectory.steps:
        things = parse_action(step.action, where=f"episode {trajectory.id}").things
        nodes = {thing.id for thing in things}
        nodes |= {node for edge in (*step.edges_added, *step.edges_removed) for node in (edge[0], edge[2])}
        nodes |= {node for node, _ in (*step.states_added, *step.states_removed)}
        if missing := nodes - trajectory.classes.keys():
            raise InputError(f"episode {trajectory.id}: no class for node {min(missing)} of {step.action!r}")


def _outcomes(
    planned: Counter[str],
    episodes: int,
    asked: Sequence[Sequence[CountQuestion]],
    followed: Sequence[Story],
    tracked: int,
) -> dict[str, int]:
    """How many episodes served for what, or why not."""
    told_of = sum(map(bool, asked))
    found = {"used for plans": planned["used"], "used for stories": told_of, "used for tracking": tracked}
    found |= {reason: number for reason, number in sorted(planned.items()) if reason not in ("used", "not planned")}
    found["random without a question to ask"] = len(asked) - told_of + len(followed) - tracked
    found["of another policy"] = episodes - sum(found.values())
    return {reason: number for reason, number in found.items() if number}


def _plan_keys(one: TaskPlan) -> tuple[tuple[str, object], ...]:
    state = told(one.change)
    keys = ("aim", one.aim), ("plan", one.text), ("question", one.question)
    return (*keys, ("state", state)) if state else keys


def _question_keys(question: CountQuestion) -> tuple[tuple[str, object], ...]:
    return ("episode", question.source), ("story", question.script)


def _story_keys(story: Story) -> tuple[Story]:
    """The story whoever is in it: two episodes may differ in names alone."""
    people = list(dict.fromkeys(event.person for event in story))
    return (tuple(Event(str(people.index(event.person)), event.kind, event.what) for event in story),)
