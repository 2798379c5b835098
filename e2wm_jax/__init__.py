"""e2wm_jax: teach language models from embodied experience without forgetting.

The modules follow the data: worlds -> experience -> tasks -> data -> models + lora -> fisher -> regularizers ->
train -> evaluate.  Each imports only from those before it; `e2wm --help` runs each.

The names below are the public ones: docs/library.md.  They are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from e2wm_jax import lora
    from e2wm_jax.config import LoraConfig
    from e2wm_jax.data.example import Completion, TaskExample
    from e2wm_jax.data.loader import Loader
    from e2wm_jax.data.tokenize import document_rows, task_rows
    from e2wm_jax.data.tokenizer import load_tokenizer
    from e2wm_jax.errors import InputError
    from e2wm_jax.fisher.diagonal import document_fisher
    from e2wm_jax.fisher.documents import document_batches
    from e2wm_jax.fisher.examples import fisher_diagonal, sampled_nll
    from e2wm_jax.fisher.files import read_fisher, write_fisher
    from e2wm_jax.lora import Scope
    from e2wm_jax.models.decoding.generate import Decoding, generate
    from e2wm_jax.models.head import target_nll
    from e2wm_jax.models.weights import Model
    from e2wm_jax.models.weights import load as load_model
    from e2wm_jax.regularizers.ewc import ewc_penalty
    from e2wm_jax.regularizers.quadratic import lora_ewc_penalty
    from e2wm_jax.storage.adapter_files import read_adapter, write_adapter
    from e2wm_jax.train.step import Controls, StepConfig, initial_state, train_step
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
