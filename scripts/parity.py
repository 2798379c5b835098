"""Print the largest differences from transformers and PyTorch on the embedded model, or on another LLaMA.

    python scripts/parity.py [--model DIR]

Needs the extra `test`.
"""

import argparse
from collections.abc import Sequence
from unittest import mock

import numpy as np
import torch
from independent_scores import loaded
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from e2wm_jax.data.batch import collate
from e2wm_jax.data.source import read_documents
from e2wm_jax.data.tokenize import document_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.fisher.diagonal import document_fisher
from e2wm_jax.fisher.documents import document_batches
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.head import target_logits
from e2wm_jax.models.weights import load
from e2wm_jax.storage.model_files import EMBEDDED_MODEL, locate

LENGTH, TEXTS = 96, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the two errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="Hugging Face directory")
    name = parser.parse_args(arguments).model
    theirs, _ = loaded(name)
    ours = load(name)
    tokenizer = load_tokenizer(locate(name))
    rows, _ = document_rows(tokenizer, read_documents("pydoc:fisher"), max_length=LENGTH, special_tokens=True)
    rows = rows[:TEXTS]
    batch = collate(rows, length=LENGTH, num_targets=LENGTH - 1, batch_size=TEXTS)

    scores = np.asarray(target_logits(ours.config, ours.params, batch))
    worst = 0.0
    for row, mine in zip(rows, scores, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor(row.ids[None].astype(np.int64))).logits[0, :-1].numpy()
        worst = max(worst, float(np.abs(mine[: len(expected)] - expected).max() / np.abs(expected).max()))
    print(f"logits, max |difference| / max |logit|, float32:           {worst:.1e}")

    result = document_fisher(ours.config, ours.params, document_batches(rows, TEXTS, LENGTH))
    expected_fisher = _loop(theirs.double(), rows)
    errors = {}
    for path, spec in weight_table(ours.config).items():
        for layer in range(ours.config.num_layers) if spec.stacked else (0,):
            value = np.asarray(result.values[path][layer] if spec.stacked else result.values[path])
            reference = expected_fisher[spec.hf.format(layer)]
            errors[spec.hf.format(layer)] = float(np.abs(value - reference).max() / reference.max())
    name = max(errors, key=errors.__getitem__)
    print(f"Fisher, worst of {len(errors)} tensors, max |difference| / max F:  {errors[name]:.1e}  ({name})")
    print("against transformers in float32 and a float64 PyTorch loop over single texts")


def _double_norm(norm: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    """transformers computes a norm's statistics in float32 whatever the dtype."""
    return norm.weight * x * (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()


def _loop(model: torch.nn.Module, rows: list) -> dict[str, np.ndarray]:
    """F by the definition: one text, one gradient, one square, all in float64."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        ids = torch.tensor(row.ids[None].astype(np.int64))
        model.zero_grad()
        with mock.patch.object(LlamaRMSNorm, "forward", _double_norm):
            # Not `labels=ids`: transformers would compute the loss in float32.
            torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad**2
    return {name: (value / len(rows)).numpy() for name, value in total.items()}


if __name__ == "__main__":
    main()
