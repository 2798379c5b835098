"""The official expression of `e2wm bench penalty`, in torch."""

from collections.abc import Callable
from typing import Any

from e2wm_jax.bench.harness import time_call
from e2wm_jax.bench.jobs.penalty import SCALE, factors
from e2wm_jax.bench.process import Answer


def official(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """torch.sum(F * (s B A) ** 2) of every adapted module, added up, and its backward pass."""
    import torch

    cuda = torch.cuda.is_available()
    given = [torch.from_numpy(x).to("cuda" if cuda else "cpu") for x in factors(case)]
    a, b = (list(x.unbind(0)) for x in given[:2])
    fisher = list(given[2].unbind(0))
    for factor in (*a, *b):
        factor.requires_grad_(True)

    def call() -> float:
        for factor in (*a, *b):
            factor.grad = None
        total = sum(torch.sum(f * ((b_i @ a_i) * SCALE) ** 2) for a_i, b_i, f in zip(a, b, fisher, strict=True))
        total.backward()
        if cuda:
            torch.cuda.synchronize()
        return float(total.detach())

    def measured() -> Answer:
        seconds, value = time_call(call)
        return {"seconds": seconds, "value": value}

    return {"official": measured}


SIDES = {"official": official}
