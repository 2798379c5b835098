"""Score E2WM's sets again in PyTorch and plain Python, and print how far `e2wm eval all` is from that.

    e2wm eval all --model MODEL --data DIR --out OUT
    python scripts/independent_scores.py --out OUT

Shares no code with e2wm_jax but for where its embedded model lies: answers are scored one sequence at a time, without
padding; ROUGE and the overlap of lists follow their definitions.  Model, adapter, data and settings are those that
OUT/results.json names.  Checked is every question and every text that OUT/predictions has (--samples of `eval all`
makes them fewer); --texts of each set are written again by transformers.  Exits with 1 where something differs, or
where there is nothing to check.  Needs the extra `test`.
"""

import argparse
import gzip
import inspect
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nltk.stem.porter import PorterStemmer
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from e2wm_jax.storage.model_files import EMBEDDED_MODEL, embedded_gguf  # where the embedded model lies

# Log probability of an answer over its tokens; in these sets less that of the same answer behind "Answer:" instead.
CALIBRATED = {"act_infer", "housework_qa", "neg_housework_qa"}
PATHS = {"obj_move_path"}
CLOSE = 1e-4  # nats and relative, of two programs in float32
Row = Mapping[str, Any]
Encode = Callable[[str], Mapping[str, list[int]]]


class Found(NamedTuple):
    """Independent scores of a set, whether everything below them agrees, and in words how closely."""

    scores: dict[str, float]
    same: bool
    said: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each set; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory that eval all wrote")
    parser.add_argument("--texts", type=int, default=1, help="how many texts of each set are written again")
    args = parser.parse_args(arguments)
    results = json.loads((args.out / "results.json").read_text())
    settings = results["settings"]
    if settings["base_dtype"] != "float32" or len(results["adapter"]) > 1:
        parser.error("scores float32 and at most one adapter; evaluate so")
    model, tokenizer = loaded(results["model"], *results["adapter"])
    encode = partial(tokenizer, add_special_tokens=settings["special_tokens"])
    wrong = checked = 0
    for path in sorted(file for source in settings["data"] for file in files(Path(source))):
        name = path.name.split(".")[0]
        written = args.out / "predictions" / f"{name}.jsonl"
        if args.out in path.parents or results["sets"].get(name, {}).get("kind") not in ("qa", "generate"):
            continue
        rows, predictions, ours = read_rows(path), read_rows(written), results["sets"][name]
        if ours["kind"] == "qa":
            found = check_questions(model, encode, name, rows, predictions)
        else:
            options = {"num_beams": settings["beams"], "max_new_tokens": settings["max_new_tokens"]}
            found = check_texts(model, tokenizer, encode, name, rows, predictions, args.texts, options)
        same = found.same and all(abs(value - ours[metric]) < 1e-6 for metric, value in found.scores.items())
        wrong, checked = wrong + (not same), checked + 1
        numbers = "  ".join(f"{metric} {ours[metric]:.6f} / {value:.6f}" for metric, value in found.scores.items())
        print(f"{'same' if same else 'DIFFERENT':9}  {name}, {len(predictions)}: {numbers}  ({found.said})", flush=True)
    if not checked:
        print(f"nothing to check: none of {', '.join(settings['data'])} is a file of a set in {args.out}")
    return 1 if wrong or not checked else 0


def files(source: Path) -> list[Path]:
    """JSON files of a folder, or the file itself."""
    found = [source] if source.is_file() else [path for path in source.rglob("*.json*") if path.is_file()]
    return [path for path in found if path.name.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz"))]


def loaded(model: str, adapter: str | None = None) -> tuple[Any, Any]:
    """Model in float32 and tokenizer as transformers reads them, with an adapter as PEFT does."""
    path = embedded_gguf() if model == EMBEDDED_MODEL else Path(model)
    folder, options = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    if adapter is not None:
        from peft import PeftModel

        found = PeftModel.from_pretrained(found, adapter)
    return found.eval(), AutoTokenizer.from_pretrained(folder, **options)


def read_rows(path: Path) -> list[Row]:
    """Rows of a file of JSON lines, possibly compressed."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def check_questions(model: Any, encode: Encode, name: str, rows: Sequence[Row], predictions: Sequence[Row]) -> Found:
    """Accuracy of the best answers, and the largest difference of any answer's score."""
    right, differs, same = 0, 0.0, True
    for one in predictions:
        row = rows[one["index"]]
        scores = answer_scores(model, encode, row["input"], row["answer_list"], calibrated=name in CALIBRATED)
        right += int(np.argmax(scores)) == row["answer_list"].index(row["answer"])
        differs = max(differs, float(np.abs(np.array(one["scores"]) - scores).max()))
        same &= np.allclose(one["scores"], scores, rtol=CLOSE, atol=CLOSE) and one["choice"] == int(np.argmax(scores))
    return Found({"accuracy": right / len(predictions)}, same, f"scores differ by at most {differs:.1e} nats")


def check_texts(
    model: Any,
    tokenizer: Any,
    encode: Encode,
    name: str,
    rows: Sequence[Row],
    predictions: Sequence[Row],
    texts: int,
    options: Mapping[str, int],
) -> Found:
    """Mean scores of the written texts, and whether the first of them are written again to the letter."""
    score = overlap if name in PATHS else rouge
    scores = [score(one["prediction"], rows[one["index"]]["ref"]) for one in predictions]
    again = [
        continuation(model, tokenizer, encode, rows[one["index"]]["input"], options) for one in predictions[:texts]
    ]
    equal = sum(mine == one["prediction"] for mine, one in zip(again, predictions, strict=False))
    means = {metric: float(np.mean([found[metric] for found in scores])) for metric in scores[0]}
    return Found(means, equal == len(again), f"{equal} of {len(again)} texts written again are the same")


def answer_scores(model: Any, encode: Encode, text: str, answers: Sequence[str], *, calibrated: bool) -> np.ndarray:
    """Mean log probability of each answer's tokens behind the text, or the sum less that behind "Answer:" alone."""
    own = answer_log_probabilities(model, encode, text, answers)
    if not calibrated:
        return np.array([one.mean() for one in own])
    priors = answer_log_probabilities(model, encode, "Answer:", answers)
    return np.array([one.sum() - prior.sum() for one, prior in zip(own, priors, strict=True)])


def answer_log_probabilities(model: Any, encode: Encode, text: str, answers: Sequence[str]) -> list[np.ndarray]:
    """log p of each token of each answer: of those that come after as many tokens as the text alone has.

    What all of them begin with is read once and kept in the cache of transformers.
    """
    start = max(len(encode(text)["input_ids"]), 1)
    rows = [encode(f"{text} {answer}")["input_ids"] for answer in answers]
    columns = zip(*(row[: start - 1] for row in rows), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    cache = None
    if shared:
        with torch.no_grad():
            cache = DynamicCache(config=model.config)
            model(torch.tensor([rows[0][:shared]]), **_with(model, cache))
    return [log_probabilities(model, row, start, cache=deepcopy(cache), cached=shared) for row in rows]


def log_probabilities(
    model: Any, ids: Sequence[int], start: int = 1, *, cache: Any = None, cached: int = 0
) -> np.ndarray:
    """log p of each token from ``start`` on, given all before it; the first has none. ``cache`` knows some already."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[cached:]]), **_with(model, cache)).logits[0, start - 1 - cached : -1]
        scores = torch.log_softmax(logits.double(), dim=-1)
    return scores[torch.arange(len(ids) - start), torch.tensor(ids[start:])].numpy()


def _with(model: Any, cache: Any) -> dict[str, Any]:
    """The argument that gives a model its cache, which transformers 5.24 has renamed."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT's wrapper
    return {"cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values": cache}


def continuation(model: Any, tokenizer: Any, encode: Encode, text: str, options: Mapping[str, int]) -> str:
    """What beam search writes behind the text, up to the end of the line."""
    ids = torch.tensor([encode(text)["input_ids"]])
    with torch.no_grad():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0].strip()


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """F of common words, of common pairs of words, and of the longest common subsequence (Lin 2004)."""
    ours, theirs = stemmed_words(prediction), stemmed_words(reference)

    def f(common: int, mine: int, other: int) -> float:
        return 2 * common / (mine + other) if common else 0.0  # of precision common/mine and recall common/other

    def common(n: int) -> float:
        mine, other = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (ours, theirs))
        return f((mine & other).total(), mine.total(), other.total())

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(ours) or j == len(theirs):
            return 0
        if ours[i] == theirs[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return {"rouge1": common(1), "rouge2": common(2), "rougeL": f(longest(0, 0), len(ours), len(theirs))}


def stemmed_words(text: str) -> list[str]:
    """Words as ROUGE's authors' script takes them with stemming: those longer than three letters are stemmed."""
    stemmer = PorterStemmer()
    return [stemmer.stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]


def overlap(prediction: str, reference: str) -> dict[str, float]:
    """The longest run of places that both lists have in a row, over the longer list: every run is looked for."""
    ours, theirs = prediction.split(", "), reference.split(", ")
    runs = [ours[i:j] for i, j in itertools.combinations(range(len(ours) + 1), 2)]
    common = [len(run) for run in runs for k in range(len(theirs)) if theirs[k : k + len(run)] == run]
    return {"lcs": max(common, default=0) / max(len(ours), len(theirs))}


if __name__ == "__main__":
    sys.exit(main())
