"""Activity recognition: from a plan to the name of the task, as free text with two solved examples."""

import random
from collections.abc import Sequence

from e2wm_jax.tasks.example import Generation
from e2wm_jax.tasks.plan import Plan, targets

_BLOCK = "Given a household activity plan as follows:\n{plan}\nQ: What is the name of the activity?\nA:"


def act_recog(plans: Sequence[Plan], *, size: int, rng: random.Random) -> list[Generation]:
    """Two-shot activity recognition in the official training form: blocks separated by a blank line."""
    examples = []
    for *solved, target in targets(plans, key="task", shot_count=2, size=size, rng=rng):
        blocks = [_BLOCK.format(plan=plan.text) + f" {plan.task}" for plan in solved]
        examples.append(Generation("\n\n".join([*blocks, _BLOCK.format(plan=target.text)]), target.task))
    return examples
