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
    __all__, __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "Batch": "e2wm_jax.data.batch",
            "Completion": "e2wm_jax.data.example",
            "Conversation": "e2wm_jax.data.example",
            "Document": "e2wm_jax.data.example",
            "Loader": "e2wm_jax.data.loader",
            "Row": "e2wm_jax.data.batch",
            "TaskExample": "e2wm_jax.data.example",
            "collate": "e2wm_jax.data.batch",
            "document_rows": "e2wm_jax.data.tokenize",
            "load_tokenizer": "e2wm_jax.data.tokenizer",
            "read_documents": "e2wm_jax.data.source",
            "read_task": "e2wm_jax.data.source",
            "task_rows": "e2wm_jax.data.tokenize",
        },
    )
