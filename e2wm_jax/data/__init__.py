"""Text to batches; numpy only, so that loader workers never start an accelerator."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.data.batch import Batch, Row, collate
    from e2wm_jax.data.example import Completion, Conversation, Document, TaskExample
    from e2wm_jax.data.loader import Loader
    from e2wm_jax.data.source import read_documents, read_task
    from e2wm_jax.data.tokenize import document_rows, task_rows
    from e2wm_jax.data.tokenizer import load_tokenizer
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
