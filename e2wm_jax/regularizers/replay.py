"""Replay of general text: its negative log-likelihood beside the task's, InstructGPT's PTX term (Ouyang et al. 2022).

    - log p(x_t | x_<t)      of every predicted token of the text, in nats

Unlike all others it is not 0 at the start, nor is its gradient: it is a second task, and its loss is what the model had
there, 3 nats or so.  It may make the model better on that text than the pretrained one.

Letters: B rows, M predicted tokens.
"""

import jax

from e2wm_jax.data.batch import Batch
from e2wm_jax.models.frozen_head import token_nll
from e2wm_jax.models.head import target_labels, target_states
from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.regularizer import Regularizer, Scope
from e2wm_jax.regularizers.tokens import head_of


def text_loss(scope: Scope, params: Params, adapted: Params, batch: Batch) -> jax.Array:
    """Negative log-likelihood [B, M] float32 nats of each target token; meaningless where its weight is 0."""
    head, parts = head_of(scope, params)
    states = target_states(scope.config, adapted, batch, remat=scope.remat)
    return token_nll(states, head, target_labels(batch), parts=parts)


REPLAY = Regularizer(
    formula="mean over tokens of general text of -log p",
    reference="PTX of InstructGPT, Ouyang et al. 2022",
    reads="text",
    token_penalty=text_loss,
)
