"""transformers beside `ours.models`: the same passes and continuations of the same model, in torch."""

import importlib.util
from collections.abc import Callable
from typing import Any

from e2wm_jax.bench.process import Answer
from e2wm_jax.storage.model_files import locate


def has_transformers() -> bool:
    """Whether there is a torch for transformers to run on."""
    return importlib.util.find_spec("torch") is not None


def operations(model: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for, as of `ours.models`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, model["dtype"])
    if "config" in model:
        raw = dict(model["config"])
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=dtype)
    else:
        files = locate(model["model"])
        where = (files.path.parent, files.path.name) if files.format == "gguf" else (files.path, None)
        network = AutoModelForCausalLM.from_pretrained(where[0], gguf_file=where[1], dtype=dtype)
    network.eval()
    network.generation_config.eos_token_id = None

    def forward(ids: list[list[int]]) -> Answer:
        rows = torch.tensor(ids)
        with torch.no_grad():
            return {"loss": float(network(rows, labels=rows).loss)}

    def gradient(ids: list[list[int]]) -> Answer:
        rows = torch.tensor(ids)
        network.zero_grad(set_to_none=True)
        loss = network(rows, labels=rows).loss
        loss.backward()
        return {"loss": float(loss.detach())}

    def generate(prompts: list[list[int]], new_tokens: int, beams: int = 1) -> Answer:
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"num_beams": beams, "do_sample": False, "pad_token_id": 0, "max_new_tokens": new_tokens}
        with torch.no_grad():
            found = network.generate(input_ids=ids, attention_mask=mask, **options)
        return {"tokens": found[:, length:].tolist()}

    return {"forward": forward, "gradient": gradient, "generate": generate}


SIDES = {"transformers": operations}
