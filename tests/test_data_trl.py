"""Token ids and loss masks of data that TRL's SFTTrainer reads too: what it gives and what we give are the same.

`RECORDED` is what TRL 1.16.0 (transformers 5.24, datasets 5.2) gave for `CASES`, with what is learned in brackets;
where it is installed, it is asked again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import byte_tokenizer
from tokenizers.processors import TemplateProcessing

from e2wm_jax.data.batch import Row
from e2wm_jax.data.source import read_examples
from e2wm_jax.data.tokenize import task_rows

MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
HI, HELLO, HOW, FINE = (
    {"role": role, "content": content}
    for role, content in (("user", "Hi"), ("assistant", "Hello!"), ("user", "How are you?"), ("assistant", "Fine."))
)
CASES: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "a cup"}, {"text": " two\n\nlines\n"}, {"text": "has its end</s>"}],
    "completion": [
        {"prompt": "2 + 2 is", "completion": " 4"},
        {"prompt": "2 + 2 is ", "completion": "4"},
        {"prompt": "", "completion": "only this"},
        {"prompt": "xa", "completion": "b and more</s>"},  # a and b are one token
        {"prompt": "ends</s>", "completion": "goes on"},
    ],
    "turns": [{"prompt": [HI], "completion": [HELLO]}, {"prompt": [HI, HELLO, HOW], "completion": [FINE]}],
    "messages": [
        {"messages": [HI, HELLO]},
        {"messages": [{"role": "system", "content": "Short!"}, HI, HELLO, HOW, FINE]},
        {"messages": [HELLO, HOW, FINE, HI]},
    ],
}
LENGTHS = {"short": 9}
CASES["short"] = [*CASES["completion"][:2], {"prompt": "a", "completion": "much longer than that"}]
RECORDED = {
    "text": ["<s>[a cup</s>]", "<s>[ two\n\nlines\n</s>]", "<s>[has its end</s>]"],
    "completion": [
        "<s>2 + 2 is[ 4</s>]",
        "<s>2 + 2 is [4</s>]",
        "<s>[only this</s>]",
        "<s>x[ab and more</s>]",
        "<s>ends</s>[goes on</s>]",
    ],
    "turns": [
        "<|user|>Hi</s><|assistant|>[Hello!</s>]",
        "<|user|>Hi</s><|assistant|>Hello!</s><|user|>How are you?</s><|assistant|>[Fine.</s>]",
    ],
    "messages": [
        "<|user|>Hi</s><|assistant|>[Hello!</s>]",
        "<|system|>Short!</s><|user|>Hi</s><|assistant|>[Hello!</s>]<|user|>How are you?</s><|assistant|>[Fine.</s>]",
        "<|assistant|>[Hello!</s>]<|user|>How are you?</s><|assistant|>[Fine.</s>]<|user|>Hi</s>",
    ],
    "short": ["<s>a[much lo]"],
}


def tokenizer() -> Any:
    made = byte_tokenizer(
        special=("<s>", "<|system|>", "<|user|>", "<|assistant|>", "</s>"), merges=("a b",), chat_template=MARKED
    )
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


def bracketed(ids: Sequence[int], learned: Sequence[bool]) -> str:
    """The text of the tokens, with what is learned in brackets; nothing predicts the first one."""
    words, text, inside = tokenizer(), "", False
    for place, token in enumerate(ids):
        if (learned[place] and place > 0) != inside:
            text += "]" if inside else "["
            inside = not inside
        text += words.convert_tokens_to_string([words.convert_ids_to_tokens(token)])
    return text + "]" * inside


def our_rows(name: str, folder: Path) -> list[Row]:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CASES[name]))
    return task_rows(
        tokenizer(),
        read_examples(folder / "a.jsonl"),
        max_length=LENGTHS.get(name, 999),
        special_tokens=True,
        skip_truncated=True,
    )[0]


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_trl(name: str, tmp_path: Path) -> None:
    rows = our_rows(name, tmp_path)
    found = [bracketed(row.ids.tolist(), np.isin(np.arange(len(row.ids)), row.targets).tolist()) for row in rows]
    assert found == RECORDED[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_what_is_recorded_is_what_trl_gives(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_length=LENGTHS.get(name, 999),
        assistant_only_loss=name == "messages",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        args=settings,
        train_dataset=Dataset.from_list(CASES[name]),
        processing_class=tokenizer(),
    )
    found = []
    for row, ours in zip(trainer.train_dataset, our_rows(name, tmp_path), strict=True):
        batch = trainer.data_collator([row])
        assert batch["input_ids"][0].tolist() == ours.ids.tolist()
        labels = batch["labels"][0].tolist()
        found.append(bracketed(batch["input_ids"][0].tolist(), [label != -100 for label in labels]))
    assert found == RECORDED[name]
