"""Plain functions that several test files share; what takes time to make is a fixture of conftest.py."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from e2wm_jax.worlds.household.graph import Scene


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest difference by the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Its tokens and no others."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def randomize(model: Any) -> None:
    """Make every weight of a torch model random, norms and biases too, so that one left out or swapped shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and ("norm" in name or ".ln_" in name)
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            parameter.normal_(1.0 if norm and name.endswith("weight") else 0.0, scale)


def random_torch_model(model_type: str, attn_implementation: str | None = "eager", **options: Any) -> Any:
    """A random model of transformers; its attention is written out, or with None as transformers chooses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    options = json.loads(json.dumps(options))  # transformers writes into the dictionaries it is given
    config = AutoConfig.for_model(model_type, **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    randomize(model)
    return model


def byte_tokenizer(
    *, special: tuple[str, ...] = ("<s>", "</s>"), merges: tuple[str, ...] = (), chat_template: str | None = None
) -> Any:
    """Byte-level: every byte is a token, each pair of `merges` ("a b"), and each of `special`, the first of which
    begins texts, where that is asked for, and the last ends them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(pair.split()) for pair in merges]
    tokens = [*alphabet, *map("".join, pairs)]
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    roles = {"bos_token": special[0], "eos_token": special[-1]}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat_template, **roles)


@contextmanager
def unaltered(model: Any) -> Iterator[Any]:
    """A torch model in float32 that others use as well. Who trains, freezes, adapts or converts it fails, not they."""
    import torch

    def state() -> dict[str, Any]:
        found: dict[str, Any] = {"training": model.training}
        for name, p in model.named_parameters():
            bits = int(p.detach().view(torch.int32).sum(dtype=torch.int64)) if p.dtype == torch.float32 else None
            found[name] = p.dtype, p.requires_grad, p.grad is None, bits
        return found

    before = state()
    yield model
    after = state()
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    assert not changed, f"a model shared by many tests was altered ({changed[0]}, ...); alter a copy"


class Counted:
    """A weight that counts how often a layer reads it."""

    def __init__(self, value: jax.Array) -> None:
        self.value, self.reads = value, 0

    def _read(self) -> jax.Array:
        self.reads += 1
        return self.value

    def matmul(self, x: jax.Array) -> jax.Array:
        return x @ self._read().T

    def multiply(self, x: jax.Array) -> jax.Array:
        return x * self._read()

    def add(self, x: jax.Array) -> jax.Array:
        return x + self._read()


def renumbered(scene: Scene, number: Callable[[int], int]) -> Scene:
    """The scene with other ids; everything else, the order of the nodes included, as before."""
    nodes = {number(node.id): replace(node, id=number(node.id)) for node in scene.nodes.values()}
    edges = tuple((number(source), relation, number(target)) for source, relation, target in scene.edges)
    return Scene(scene.name, nodes, edges)
