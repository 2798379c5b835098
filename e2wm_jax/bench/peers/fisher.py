"""The peers of `e2wm bench fisher`: what there is elsewhere to square the gradients of single documents.

Each runs in a process of its own (`process.Peer`), on the weights that ours wrote, in float32, on the cores ours has.
They are used as their documentation says, and helped where that costs them nothing: positions are given per document,
so that the position table has a gradient for each.

    official     one document at a time; each gradient goes to the host, is squared there and added
    torch-func   torch.func: vmap of grad over the documents
    backpack     BackPACK's SumGradSquared, on the modules it knows (linear maps and tables)
    opacus       Opacus' GradSampleModule: a gradient per document, then squared
    jax-privacy  jax_privacy's clipped_fun of the squared gradient, clipped at infinity, one document at a time

Letters: N documents, T tokens, V vocabulary.
"""

import functools
import importlib.util
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from e2wm_jax.bench.harness import PRODUCT, most_memory, product_rate, seconds_of, watch_memory
from e2wm_jax.bench.jobs.fisher import FisherJob, compare, documents, reference_folder
from e2wm_jax.bench.process import Answer
from e2wm_jax.storage.tensor_files import open_tensors

Sums = Mapping[str, Any]  # Hugging Face name -> sum over documents of the squared gradient, an array of some kind


class PeerPass(NamedTuple):
    """A peer that is ready."""

    run: Callable[[], Any]  # one pass over the documents
    sums: Callable[[Any], Sums] = lambda found: found  # of what `run` returned
    facts: Mapping[str, Any] = MappingProxyType({})


class PeerPackage(NamedTuple):
    """What a peer needs."""

    modules: tuple[str, ...]
    install: str


_EXTRA = "pip install 'e2wm_jax[peers]'"
PACKAGES = {
    "official": PeerPackage(("torch",), _EXTRA),
    "torch-func": PeerPackage(("torch",), _EXTRA),
    # It asks for torchvision, which it does not import, and of which pip takes one that is not made for this torch.
    "backpack": PeerPackage(("torch", "backpack"), f"{_EXTRA} && pip install --no-deps backpack-for-pytorch==1.7.1"),
    "opacus": PeerPackage(("torch", "opacus"), _EXTRA),
    "jax-privacy": PeerPackage(("jax_privacy",), _EXTRA),
}


def missing(peer: str) -> str:
    """How to install a peer; "" if it is."""
    package = PACKAGES[peer]
    return "" if all(map(importlib.util.find_spec, package.modules)) else package.install


class _Torch(NamedTuple):
    """A model in torch and the documents."""

    network: Any
    chosen: dict[str, Any]  # parameters whose F is wanted; the others are frozen
    ids: Any  # [N, T]
    positions: Any  # [N, T]

    def loss(self, network: Callable[..., Any], rows: slice = slice(None)) -> Any:
        """Mean over documents of the mean negative log-likelihood."""
        import torch

        ids = self.ids[rows]
        scores = network(input_ids=ids, position_ids=self.positions[rows], use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten())


def _load_torch(job: FisherJob, attention: str | None = None) -> _Torch:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.cores or torch.get_num_threads())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, attn_implementation=attention)
    network = network.to(device).eval()
    wanted = open_tensors(reference_folder(job)).names
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in wanted)
    chosen = {name: p for name, p in network.named_parameters() if p.requires_grad}
    ids = torch.tensor(np.stack([row.ids for row in documents(job, network.config.vocab_size)])).long().to(device)
    positions = torch.arange(ids.shape[1], device=device).expand(ids.shape)
    return _Torch(network, chosen, ids, positions)


def _official(job: FisherJob) -> PeerPass:
    import torch

    it = _load_torch(job)
    square = torch.ones((PRODUCT, PRODUCT), device=it.ids.device)
    rate = product_rate(lambda: (square @ square)[0, 0].item(), job.clock)

    def run() -> Sums:
        sums: dict[str, Any] = {}
        for number in range(len(it.ids)):
            it.loss(it.network, slice(number, number + 1)).backward()
            for name, parameter in it.chosen.items():
                square = parameter.grad.detach().cpu() ** 2
                sums[name] = square if number == 0 else sums[name] + square
            it.network.zero_grad()
        return sums

    return PeerPass(run, facts={"gflops": rate})


def _torch_func(job: FisherJob) -> PeerPass:
    import torch
    from torch.func import functional_call, grad, vmap

    it = _load_torch(job, "eager")
    constant = {name: p.detach() for name, p in it.network.named_parameters() if name not in it.chosen}

    def loss(chosen: Sums, ids: Any) -> Any:
        inputs = {"input_ids": ids[None], "use_cache": False}  # with positions, transformers looks for packed rows
        scores = functional_call(it.network, {**constant, **chosen}, (), inputs).logits[0, :-1]
        return torch.nn.functional.cross_entropy(scores, ids[1:])

    chosen = {name: p.detach() for name, p in it.chosen.items()}
    gradients = vmap(grad(loss), in_dims=(None, 0))

    def run() -> Sums:
        return {name: g.square().sum(0) for name, g in gradients(chosen, it.ids).items()}

    return PeerPass(run)


def _backpack(job: FisherJob) -> PeerPass:
    import torch
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    it = _load_torch(job, "eager")
    known = [m for m in it.network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    for parameter in it.chosen.values():
        parameter.requires_grad_(False)
    mine = {id(p) for module in known for p in extend(module).parameters()}
    chosen = {name: p.requires_grad_(True) for name, p in it.chosen.items() if id(p) in mine}

    def run() -> Sums:
        it.network.zero_grad()
        with backpack(SumGradSquared()):
            (it.loss(it.network) * len(it.ids)).backward()
        return {name: p.sum_grad_squared for name, p in chosen.items()}

    return PeerPass(run)


def _opacus(job: FisherJob) -> PeerPass:
    import torch
    from opacus import GradSampleModule

    it = _load_torch(job, "eager")
    # It records in training only, which must not bring dropout.
    for module in it.network.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    wrapped = GradSampleModule(it.network, loss_reduction="mean", strict=False)

    def run() -> Sums:
        wrapped.zero_grad()
        it.loss(wrapped).backward()
        return {name: _per_document(p.grad_sample).square().sum(0) for name, p in it.chosen.items()}

    return PeerPass(run)


def _per_document(samples: Any) -> Any:
    """Gradients [N, ...]; of a parameter that is used several times there is a list."""
    return functools.reduce(operator.add, samples) if isinstance(samples, list) else samples


def _jax_privacy(job: FisherJob) -> PeerPass:
    import jax
    import jax.numpy as jnp
    from jax_privacy.clipping import clipped_fun

    from e2wm_jax.bench.ours.fisher import document_loss, hf_tensors, load_model
    from e2wm_jax.models import decoder
    from e2wm_jax.models.weights import flatten, hf_names

    config, params = load_model(job)
    wanted = open_tensors(reference_folder(job)).names
    table, flat = decoder.weight_table(config), flatten(params)
    chosen = {path: value for path, value in flat.items() if wanted.intersection(hf_names(table[path], config))}
    loss = document_loss(config, flat)

    def squared(chosen: Sums, ids: jax.Array) -> Sums:
        return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), jax.grad(loss)(chosen, ids))

    options = {"keep_batch_dim": False, "l2_clip_norm": float("inf"), "microbatch_size": 1, "nan_safe": False}
    compiled = jax.jit(clipped_fun(squared, batch_argnums=1, **options))
    ids = jnp.asarray(np.stack([row.ids for row in documents(job, config.vocab_size)]))
    return PeerPass(lambda: jax.block_until_ready(compiled(chosen, ids)), lambda found: dict(hf_tensors(config, found)))


def peer_operations(job: FisherJob, peer: PeerPass) -> dict[str, Callable[..., Answer]]:
    """What a peer's process can be asked for, after a first pass."""
    before = watch_memory()
    found: list[Any] = []

    def once() -> None:
        found.clear()  # else there would be two at a time
        found.append(peer.run())
        _wait()

    once()

    return {
        "prepare": lambda: {"grown_bytes": most_memory() - before, **peer.facts},
        "measure": lambda: {"seconds": seconds_of(once, job.clock)},
        "check": lambda: compare(job, _host(peer.sums(found[0]), len(job.lengths))),
    }


def _wait() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _host(sums: Sums, count: int) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in sums.items():
        on_host = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        yield name, on_host.astype(np.float32) / count


def _side(ready: Callable[[FisherJob], PeerPass], case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    job = FisherJob(**case)
    return peer_operations(job, ready(job))


SIDES = {
    "official": functools.partial(_side, _official),
    "torch-func": functools.partial(_side, _torch_func),
    "backpack": functools.partial(_side, _backpack),
    "opacus": functools.partial(_side, _opacus),
    "jax-privacy": functools.partial(_side, _jax_privacy),
}
