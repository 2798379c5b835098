"""e2wm_jax: teach language models from embodied experience without forgetting.

The modules follow the data: simulate -> tasks -> data -> models + lora -> fisher -> regularizers -> train ->
evaluate.  Each imports only from those before it; `e2wm --help` runs each.

The names below are the public ones: docs/library.md.  They are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from e2wm_jax import lora
    from e2wm_jax.adapter_files import read_adapter, write_adapter
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
    from e2wm_jax.models.generate import Decoding, generate
    from e2wm_jax.models.likelihood import target_nll
    from e2wm_jax.models.weights import Model
    from e2wm_jax.models.weights import load as load_model
    from e2wm_jax.regularizers.ewc import ewc_penalty
    from e2wm_jax.regularizers.quadratic import lora_ewc_penalty
    from e2wm_jax.regularizers.regularizer import Scope
    from e2wm_jax.train.step import Controls, StepConfig, initial_state, train_step
else:
    __all__, __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "Completion": "e2wm_jax.data.example",
            "Controls": "e2wm_jax.train.step",
            "Decoding": "e2wm_jax.models.generate",
            "InputError": "e2wm_jax.errors",
            "Loader": "e2wm_jax.data.loader",
            "LoraConfig": "e2wm_jax.config",
            "Model": "e2wm_jax.models.weights",
            "Scope": "e2wm_jax.regularizers.regularizer",
            "StepConfig": "e2wm_jax.train.step",
            "TaskExample": "e2wm_jax.data.example",
            "document_batches": "e2wm_jax.fisher.documents",
            "document_fisher": "e2wm_jax.fisher.diagonal",
            "document_rows": "e2wm_jax.data.tokenize",
            "ewc_penalty": "e2wm_jax.regularizers.ewc",
            "fisher_diagonal": "e2wm_jax.fisher.examples",
            "generate": "e2wm_jax.models.generate",
            "initial_state": "e2wm_jax.train.step",
            "load_model": "e2wm_jax.models.weights:load",
            "load_tokenizer": "e2wm_jax.data.tokenizer",
            "lora": "e2wm_jax.lora",
            "lora_ewc_penalty": "e2wm_jax.regularizers.quadratic",
            "read_adapter": "e2wm_jax.adapter_files",
            "read_fisher": "e2wm_jax.fisher.files",
            "sampled_nll": "e2wm_jax.fisher.examples",
            "target_nll": "e2wm_jax.models.likelihood",
            "task_rows": "e2wm_jax.data.tokenize",
            "train_step": "e2wm_jax.train.step",
            "write_adapter": "e2wm_jax.adapter_files",
            "write_fisher": "e2wm_jax.fisher.files",
        },
    )
