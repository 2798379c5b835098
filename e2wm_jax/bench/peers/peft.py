"""The peer of `e2wm bench train`: the EWC-LoRA step with PEFT and transformers, in torch.

As one writes it with these libraries: rows padded on the right to the longest of the batch, labels of -100 but for the
answer, the loss of `forward(labels=...)`, AdamW, and the penalty sum F (s B A)^2 over the adapted modules, each formed
as a matrix.  It runs in a process of its own, in float32, on the cores and the rows that ours has, from the model and
the adapters that ours wrote.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from e2wm_jax.bench.harness import PRODUCT, most_memory, product_rate, seconds_of, watch_memory
from e2wm_jax.bench.jobs.train import LR, STRENGTH, WEIGHT_DECAY, TrainJob, adapter_folder, fisher_of, read_rows
from e2wm_jax.bench.process import Answer
from e2wm_jax.data.batch import Row

INSTALL = "pip install 'e2wm_jax[peers]'"


def missing() -> str:
    """How to install what the peer needs; "" if it is there."""
    return "" if all(map(importlib.util.find_spec, ("torch", "peft"))) else INSTALL


class TorchStep:
    """The EWC-LoRA step of one adapter."""

    def __init__(self, job: TrainJob, index: int, *, dropout: float) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(f"{job.folder}/model", dtype=torch.float32)
        self.network = PeftModel.from_pretrained(base, adapter_folder(job, index), is_trainable=True).train()
        self.modules = [
            (name.removeprefix("base_model.model."), module)
            for name, module in self.network.named_modules()
            if hasattr(module, "lora_A")
        ]
        for _, module in self.modules:
            module.lora_dropout["default"] = torch.nn.Dropout(dropout) if dropout else torch.nn.Identity()
        self.fisher = [
            torch.from_numpy(fisher_of(name, tuple(module.base_layer.weight.shape), job.seed))
            for name, module in self.modules
        ]
        factors = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(factors, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY)

    def penalty(self) -> Any:
        """sum F (s B A)^2."""
        import torch

        total = torch.zeros(())
        for (_, module), fisher in zip(self.modules, self.fisher, strict=True):
            b, a = module.lora_B["default"].weight, module.lora_A["default"].weight
            total = total + torch.sum(fisher * (module.scaling["default"] * (b @ a)) ** 2)
        return total

    def __call__(self, rows: Sequence[Row], *, ewc: bool) -> float:
        """One step on these rows; its loss before the update."""
        batch = padded(rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.network(**batch, use_cache=False).loss
        if ewc:
            loss = loss + STRENGTH * self.penalty()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def padded(rows: Sequence[Row]) -> dict[str, Any]:
    """ids, attention mask and labels [B, T], padded on the right to the longest row."""
    import torch

    shape = len(rows), max(len(row.ids) for row in rows)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for index, row in enumerate(rows):
        tokens = torch.from_numpy(row.ids).long()
        ids[index, : len(tokens)], mask[index, : len(tokens)] = tokens, 1
        labels[index, row.first_target : len(tokens)] = tokens[row.first_target :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def operations(job: TrainJob) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for (`process.Peer`)."""
    import torch

    torch.set_num_threads(job.cores or torch.get_num_threads())
    all_rows, orders = read_rows(job)
    steps = [[all_rows[number] for number in order] for order in orders]
    made: dict[int, TorchStep] = {}

    def describe() -> Answer:
        square = torch.ones((PRODUCT, PRODUCT))
        return {"torch": torch.__version__, "gflops": product_rate(lambda: (square @ square)[0, 0].item(), job.clock)}

    def prepare(index: int, name: str) -> Answer:
        """The step, after it has run once on each batch."""
        torch.manual_seed(job.seed)
        made[index] = TorchStep(job, index, dropout=job.dropout)
        before = watch_memory()
        for rows in steps:
            made[index](rows, ewc=name == "ewc")
        return {"grown_bytes": most_memory() - before}

    def measure(index: int, name: str) -> Answer:
        ewc = name == "ewc"
        return {"seconds": seconds_of(lambda: [made[index](rows, ewc=ewc) for rows in steps], job.clock)}

    def losses(index: int) -> Answer:
        step = TorchStep(job, index, dropout=0.0)
        return {"losses": [step(rows, ewc=True) for rows in steps]}

    return {"describe": describe, "prepare": prepare, "measure": measure, "losses": losses}


SIDES = {"peft": lambda case: operations(TrainJob(**case))}
