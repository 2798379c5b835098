"""Learning rate and strength by step, worked out before the first one (optax's schedules)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e2wm_jax.options.choices import Schedule, StrengthSchedule


def learning_rates(schedule: Schedule, peak: float, steps: int, warmup: int = 0) -> np.ndarray:
    """[steps] float32: a linear rise over `warmup` steps, then the schedule over the rest.

    Without warm-up, linear is peak * (1 - (step - 1) / steps) for step 1, 2, ..., as the official run has it.
    """
    rest = max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[schedule]
    if warmup:
        after = optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup])
    return _values(after, steps)


def strengths(schedule: StrengthSchedule, peak: float, steps: int) -> np.ndarray:
    """[steps] float32: `peak` throughout, linearly from 0 to it, or from it to 0."""
    last = max(steps - 1, 1)
    return _values(
        {
            "constant": optax.constant_schedule(peak),
            "increase": optax.linear_schedule(0.0, peak, last),
            "decrease": optax.linear_schedule(peak, 0.0, last),
        }[schedule],
        steps,
    )


def _values(schedule: optax.Schedule, steps: int) -> np.ndarray:
    values = jax.vmap(schedule)(jnp.arange(steps))
    return np.broadcast_to(np.asarray(values, np.float32), (steps,))
