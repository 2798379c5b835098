"""Penalties on tokens of general text: what the pretrained model says of them, or how likely they are.

    kl-forward   KL(p0 || p) = sum_v p0(v) (log p0(v) - log p(v))   what p0 says must stay likely (as in LwF)
    kl-reverse   KL(p || p0) = sum_v p(v) (log p(v) - log p0(v))   p may say nothing that p0 finds unlikely (as in RLHF)
    replay       - log p(x_t | x_<t)                               InstructGPT's PTX term (Ouyang et al. 2022)

p0 is the frozen base, p the same with adapters, on the tokens before each target; in nats, over the whole vocabulary.
The labels do not enter a divergence: it works alike on general text and on the task's own batches (there forward KL
predicts forgetting, arXiv 2509.04259).  It is 0 at the start, where B is 0, and with it the gradient; the base gets no
gradient.  The adapters come attached; the trainer attaches them without dropout, for with it p would differ from p0
even at the start.  It costs a forward pass of the base and a pass both ways of the tuned model per step, and no state.

Replay, unlike all others, is not 0 at the start, nor is its gradient: it is a second task, and its loss is what the
model had there, 3 nats or so.  It may make the model better on that text than the pretrained one.

Every value depends on its own row alone, so that it may run on a share of a batch (`jax.shard_map`).

Letters: B rows, M predicted tokens.
"""

from functools import partial
from typing import Literal

import jax

from e2wm_jax.data.batch import Batch
from e2wm_jax.lora import Scope
from e2wm_jax.models.frozen_head import token_kl, token_nll
from e2wm_jax.models.head import output_head, target_labels, target_states
from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.regularizer import Regularizer


def divergence(
    direction: Literal["forward", "reverse"], scope: Scope, params: Params, adapted: Params, batch: Batch
) -> jax.Array:
    """KL divergence [B, M] float32 nats at each target token; meaningless where its weight is 0."""
    base = jax.lax.stop_gradient(target_states(scope.config, params, batch))
    tuned = target_states(scope.config, adapted, batch, remat=scope.remat)
    head, parts = output_head(scope.config, params, scope.mesh)
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


def text_loss(scope: Scope, params: Params, adapted: Params, batch: Batch) -> jax.Array:
    """Negative log-likelihood [B, M] float32 nats of each target token; meaningless where its weight is 0."""
    head, parts = output_head(scope.config, params, scope.mesh)
    states = target_states(scope.config, adapted, batch, remat=scope.remat)
    return token_nll(states, head, target_labels(batch), parts=parts)


REPLAY = Regularizer(
    formula="mean over tokens of general text of -log p",
    reference="PTX of InstructGPT, Ouyang et al. 2022",
    reads="text",
    token_penalty=text_loss,
)
