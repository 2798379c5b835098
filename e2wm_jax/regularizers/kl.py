"""Kullback-Leibler divergence from the pretrained model, per predicted token and over the whole vocabulary.

    kl-forward   KL(p0 || p) = sum_v p0(v) (log p0(v) - log p(v))   what p0 says must stay likely (as in LwF)
    kl-reverse   KL(p || p0) = sum_v p(v) (log p(v) - log p0(v))   p may say nothing that p0 finds unlikely (as in RLHF)

p0 is the frozen base, p the same with adapters, on the tokens before each target.  The labels do not enter: it works
alike on general text and on the task's own batches (there forward KL predicts forgetting, arXiv 2509.04259).  In nats;
0 at the start, where B is 0, and with it the gradient.  The base gets no gradient.  The adapters come attached; the
trainer attaches them without dropout, for with it p would differ from p0 even at the start.

Costs a forward pass of the base and a pass both ways of the tuned model per step, and no state.

Every value depends on its own row alone, so that it may run on a share of a batch (`jax.shard_map`).

Letters: B rows, M predicted tokens.
"""

from functools import partial
from typing import Literal

import jax

from e2wm_jax.data.batch import Batch
from e2wm_jax.models.frozen_head import token_kl
from e2wm_jax.models.head import target_states
from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.regularizer import Regularizer, Scope
from e2wm_jax.regularizers.tokens import head_of


def divergence(
    direction: Literal["forward", "reverse"], scope: Scope, params: Params, adapted: Params, batch: Batch
) -> jax.Array:
    """KL divergence [B, M] float32 nats at each target token; meaningless where its weight is 0."""
    base = jax.lax.stop_gradient(target_states(scope.config, params, batch))
    tuned = target_states(scope.config, adapted, batch, remat=scope.remat)
    head, parts = head_of(scope, params)
    return token_kl(tuned, base, head, direction=direction, parts=parts)


KL_FORWARD = Regularizer(
    formula="mean over tokens of KL(p0 || p)",
    reference="learning without forgetting, Li and Hoiem 2016; RL's Razor, arXiv 2509.04259",
    reads="text",
    token_penalty=partial(divergence, "forward"),
)
KL_REVERSE = Regularizer(
    formula="mean over tokens of KL(p || p0)",
    reference="the KL term of RLHF, Ziegler et al. 2019, as a loss over the vocabulary",
    reads="text",
    token_penalty=partial(divergence, "reverse"),
)
