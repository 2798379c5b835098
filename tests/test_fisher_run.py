"""`e2wm fisher`: what it writes, that it can be stopped anywhere, several corpora, bad input, devices and hosts."""

import dataclasses
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from e2wm_jax.cli import main
from e2wm_jax.config import MODELS
from e2wm_jax.data.batch import Row
from e2wm_jax.data.source import read_documents
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher import diagonal
from e2wm_jax.fisher.command import streaming
from e2wm_jax.fisher.command.corpus import Corpus, check_corpus, read_corpus
from e2wm_jax.fisher.command.plan import choose
from e2wm_jax.fisher.command.run import FisherSettings, run
from e2wm_jax.fisher.files import read_fisher
from e2wm_jax.fisher.finite import check_finite
from e2wm_jax.fisher.storage import decode
from e2wm_jax.models.weights import Model, load
from e2wm_jax.storage.model_files import locate

TEXT = "The quick brown fox jumps over the dog.\n\nMary walks to the fridge.\n\nx\n\nA plate and 27 cats.\n"
pytestmark = pytest.mark.usefixtures("quick_compilation")

QV = r"model\.layers\.\d\.self_attn\.[qv]_proj\.weight"


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "fisher.json").read_text())


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def worst_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest over tensors of max |error| / max F."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max() / expected[name].max()) for name in expected)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "general.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def written(tiny_llama, text_file, tmp_path_factory) -> Path:
    """A Fisher directory of `tiny_llama`, all parameters."""
    out = tmp_path_factory.mktemp("fisher") / "all"
    run(FisherSettings(model=str(tiny_llama), data=(str(text_file),), out=out, max_length=64))
    return out


# ------------------------------------------------------------------------------------------------------ what it writes


def test_files_hold_fisher_under_the_parameters_own_names_and_shapes(written, tiny_llama):
    fisher, weights = tensors(written), tensors(tiny_llama)
    assert {name: value.shape for name, value in fisher.items()} == {name: v.shape for name, v in weights.items()}
    assert all(value.dtype == np.float32 and np.all(value >= 0) and value.max() > 0 for value in fisher.values())
    found = sorted(path.name for path in written.iterdir())
    assert found == ["config.json", "fisher.json", "model.safetensors", "report.html"]


def test_transformers_reads_a_fisher_as_the_official_code_does(written):
    transformers = pytest.importorskip("transformers")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    fisher = tensors(written)
    for name, parameter in loaded.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), fisher[name])


def test_fisher_json_says_how_it_was_made(written, tiny_llama, text_file):
    found = record(written)
    assert found["fingerprint"] == load(str(tiny_llama)).fingerprint
    assert found["estimator"]["labels"] == "data"
    assert found["estimator"]["reduction"] == "mean"
    assert (found["samples"], found["max_length"], found["dtype"], found["method"]) == (3, 64, "float32", "fused")
    assert found["tokens"] > 0
    assert found["version"]
    assert found["data"] == [{"path": str(text_file), "sha256": hashlib.sha256(text_file.read_bytes()).hexdigest()}]
    assert found["skipped"] == []


def test_summaries_are_those_of_the_tensors(written):
    fisher, summary = tensors(written), record(written)["summary"]
    whole = sum(float(value.sum(dtype=np.float64)) for value in fisher.values())
    assert summary["tensors"].keys() == fisher.keys()
    for name, value in fisher.items():
        found = summary["tensors"][name]
        expected = {"sum": value.sum(dtype=np.float64), "mean": value.mean(dtype=np.float64), "max": value.max()}
        assert found == pytest.approx({**expected, "share": expected["sum"] / whole}, rel=1e-9)
    of_layer = [value for name, value in fisher.items() if ".layers.1." in name]
    assert summary["layers"]["layer 1"]["sum"] == pytest.approx(sum(v.sum(dtype=np.float64) for v in of_layer))
    assert summary["layers"]["layer 1"]["mean"] == pytest.approx(np.mean(np.concatenate([v.ravel() for v in of_layer])))
    q = [fisher[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1)]
    assert summary["modules"]["self_attn.q_proj.weight"]["max"] == max(v.max() for v in q)
    for kind in ("modules", "layers"):
        assert sum(one["share"] for one in summary[kind].values()) == pytest.approx(1)
    page = (written / "report.html").read_text()
    assert "Mean F by layer and module" in page
    assert "layer 1, q_proj" in page
    assert "general.txt" in page


def test_command_reports_what_the_json_line_promises(tiny_llama, text_file, tmp_path, capsys):
    options = ["--model", str(tiny_llama), "--data", str(text_file), "--out", str(tmp_path / "f"), "--samples", "2"]
    assert main(["fisher", *options, "--params", "lora-targets", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert {"samples", "tokens", "seconds", "examples_per_second", "method", "peak_bytes", "nats"} <= result.keys()
    assert result["samples"] == 2
    assert result["peak_bytes"] > 0
    assert result["method"] == "fused"
    assert result["why"] in captured.err
    assert "examples/s" in captured.err


def test_the_table_for_people_is_ordered_by_share(tiny_llama, text_file, tmp_path, capsys):
    options = ["--model", str(tiny_llama), "--data", str(text_file), "--out", str(tmp_path / "f"), "--params", QV]
    assert main(["fisher", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("F by module"))
    shares = [float(line.split()[1].rstrip("%")) for line in lines[at + 1 :]]
    assert len(shares) == 2
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("lora-targets", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (r"model\.layers\.1\..*\.(q|v)_proj\.weight", {"q_proj", "v_proj"}),
        (r".*norm\.weight", {"norm", "input_layernorm", "post_attention_layernorm"}),
    ],
)
def test_selected_parameters_are_written_and_no_others(tiny_llama, text_file, written, tmp_path, params, expected):
    out = tmp_path / "some"
    run(FisherSettings(model=str(tiny_llama), data=(str(text_file),), out=out, params=params, max_length=64))
    some, everything = tensors(out), tensors(written)
    assert {name.split(".")[-2] for name in some} == expected
    assert record(out)["summary"]["tensors"].keys() == some.keys()
    if params.startswith("model"):
        assert {name.split(".")[2] for name in some} == {"1"}
    for name, value in some.items():
        np.testing.assert_allclose(value, everything[name], rtol=1e-5, atol=1e-6 * everything[name].max())


def test_special_tokens_are_the_tokenizers_own_default(save_llama, tmp_path, text_file):
    """The tiny tokenizer adds none by default; one that adds <|begin|> predicts one token more per document."""
    save_llama(tmp_path / "m")
    options = {"model": str(tmp_path / "m"), "data": (str(text_file),), "params": r"model\.norm\.weight"}
    plain = run(FisherSettings(out=tmp_path / "a", **options))
    path = tmp_path / "m/tokenizer.json"
    settings = json.loads(path.read_text())
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    }
    path.write_text(json.dumps(settings))
    more = run(FisherSettings(out=tmp_path / "b", **options))
    without = run(FisherSettings(out=tmp_path / "c", special_tokens=False, **options))
    assert more["samples"] == 4  # "x" is now two tokens
    assert more["tokens"] == plain["tokens"] + 4
    assert without["tokens"] == plain["tokens"]


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
def test_smaller_types_are_written(tiny_llama, text_file, written, tmp_path, dtype):
    out = tmp_path / "f"
    run(FisherSettings(model=str(tiny_llama), data=(str(text_file),), out=out, max_length=64, dtype=dtype))
    assert record(out)["dtype"] == dtype
    path = "layers.q.weight"
    model = load(str(tiny_llama))
    found, exact = (np.asarray(decode(read_fisher(folder, model, [path])[path])) for folder in (out, written))
    assert 0 < np.abs(found - exact).max() / exact.max() < 0.01


def test_methods_and_layouts_give_the_same_fisher(tiny_llama, text_file, written, tmp_path):
    """vmap and scan are the textbook's; a group of 2 and packed rows are other sums of the same numbers."""
    options = {"model": str(tiny_llama), "data": (str(text_file),), "params": QV, "max_length": 64}
    for name, changes in (
        ("scan", {"method": "scan"}),
        ("packed", {"layout": "packed", "batch_size": 1, "group": 2}),
    ):
        found = run(FisherSettings(out=tmp_path / name, **changes, **options))
        assert found["why"].endswith("as asked") == (name == "packed")
        assert found["layout"] == ("packed" if name == "packed" else "rows")
        expected = {key: value for key, value in tensors(written).items() if key in tensors(tmp_path / name)}
        assert worst_error(tensors(tmp_path / name), expected) < 5e-6


def test_auto_packs_where_rows_would_be_padding():
    def chosen(lengths: list[int], **changes: Any) -> tuple[str, str, str]:
        rows = tuple(Row(np.zeros(length, np.int32), 1) for length in lengths)
        settings = FisherSettings(model="m", data=(), out=Path("o"), batch_size=4, max_length=64, **changes)
        return choose(settings, Corpus(rows, (), 0))

    assert chosen([64] * 8)[:2] == ("fused", "rows")
    assert chosen([64] * 8)[2].endswith("would be 100% full, packed rows 100%, for about 1.00 of the time")
    assert chosen([17] * 640)[:2] == ("fused", "packed")
    assert "a row for each document would be 71% full" in chosen([17] * 640)[2]  # 17 of 24 tokens
    assert chosen([17] * 4)[1] == "rows"  # little to gain
    assert chosen([17] * 64, method="vmap")[:2] == ("vmap", "rows")
    assert chosen([17] * 64, layout="rows")[2].endswith("layout rows: as asked")


# ------------------------------------------------------------------------------------------------ stopped and continued


@pytest.fixture(scope="module")
def stream(tiny_llama, tmp_path_factory) -> dict[str, Any]:
    """Settings of a pass of six batches, all of one shape."""
    path = tmp_path_factory.mktemp("stream") / "text.jsonl"
    places = ("sink", "tv", "bed", "door")
    texts = [f"{name} walks to the {place}." for name in ("Mary", "John", "Ann") for place in places]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    same = {"model": str(tiny_llama), "data": (str(path),), "params": QV}
    return {**same, "max_length": 16, "batch_size": 2, "layout": "rows"}


@pytest.fixture(scope="module")
def uninterrupted(stream, tmp_path_factory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("whole") / "f"
    assert run(FisherSettings(out=out, **stream))["samples"] == 12
    return tensors(out)


@pytest.fixture
def at_batch(monkeypatch) -> Callable[[int, Callable[[], None]], None]:
    """at_batch(k, act): act when batch k of a pass is done."""

    def install(number: int, act: Callable[[], None]) -> None:
        def accumulate(*arguments: Any) -> Iterator[Any]:
            for now in diagonal.accumulate(*arguments):
                if now.batches == number:
                    act()
                yield now

        monkeypatch.setattr(streaming, "accumulate", accumulate)

    return install


def flags(settings: dict[str, Any], out: Path, *more: str) -> list[str]:
    pairs = {**settings, "data": settings["data"][0], "out": out}
    named = [word for name, value in pairs.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["fisher", *named, *more]


def test_a_stopped_pass_goes_on_bit_for_bit(stream, uninterrupted, other, tmp_path, at_batch, capsys, monkeypatch):
    out = tmp_path / "f"
    at_batch(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(flags(stream, out)) == 130
    assert "stopped after 8 of 12 examples; continue with --resume" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["partial"]
    monkeypatch.undo()

    assert main(flags(stream, out)) == 2
    assert "already holds an unfinished pass (8 examples done); continue it with --resume" in capsys.readouterr().err
    assert main(flags({**stream, "batch_size": 3}, out, "--resume")) == 2
    assert "--resume: the unfinished pass has --batch-size = 2, not 3" in capsys.readouterr().err
    assert main(flags({**stream, "params": "all"}, out, "--resume")) == 2
    assert "has --params" in capsys.readouterr().err
    shutil.copy(stream["data"][0], tmp_path / "copy.jsonl")
    assert main(flags({**stream, "data": (str(tmp_path / "copy.jsonl"),)}, out, "--resume")) == 2
    assert f"has --data = '{stream['data'][0]}', not '{tmp_path / 'copy.jsonl'}'" in capsys.readouterr().err
    assert main(flags({**stream, "model": str(other)}, out, "--resume")) == 2
    assert "--resume: the model's weights have changed" in capsys.readouterr().err
    data = Path(stream["data"][0])
    text = data.read_text()
    try:
        data.write_text(text.replace("Mary", "Nora"))
        assert main(flags(stream, out, "--resume")) == 2
        assert f"--resume: {data} has changed since the pass was saved" in capsys.readouterr().err
    finally:
        data.write_text(text)

    assert main(flags(stream, out, "--resume", "--json")) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["samples"], result["resumed_after"]) == (12, 8)
    assert_equal(tensors(out), uninterrupted)
    assert not (out / "partial").exists()
    assert main(flags(stream, out, "--resume")) == 2
    assert "holds a finished Fisher" in capsys.readouterr().err


def test_a_pass_that_dies_goes_on_from_its_last_complete_save(stream, uninterrupted, tmp_path, at_batch, monkeypatch):
    """Killed like a process that gets no chance to save: the saves made on the way count, one of them half-written."""

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    out = tmp_path / "f"
    at_batch(5, die)
    with pytest.raises(Killed):
        run(FisherSettings(out=out, checkpoint_minutes=1e-9, **stream))
    assert [path.name for path in (out / "partial").iterdir()] == ["00000004"]  # the earlier ones are gone
    torn = out / "partial/00000005/host-00000"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    monkeypatch.undo()
    result = run(FisherSettings(out=out, resume=True, **stream))
    assert result["resumed_after"] == 8
    assert_equal(tensors(out), uninterrupted)


def test_an_error_in_the_middle_keeps_what_is_done(stream, uninterrupted, tmp_path, at_batch, monkeypatch):
    def fail() -> None:
        raise RuntimeError("out of memory")

    out = tmp_path / "f"
    at_batch(3, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(FisherSettings(out=out, **stream))
    assert not (out / "partial").exists()  # the totals of batch 2 had been given away
    monkeypatch.undo()

    # An error after the pass: all of it is kept.
    monkeypatch.setattr("e2wm_jax.fisher.command.run.write_fisher", lambda *_, **__: fail())
    with pytest.raises(RuntimeError, match="out of memory"):
        run(FisherSettings(out=out, **stream))
    monkeypatch.undo()
    result = run(FisherSettings(out=out, resume=True, **stream))
    assert result["resumed_after"] == 12
    assert_equal(tensors(out), uninterrupted)


# ----------------------------------------------------------------------------------------------------- NaN and infinity


@pytest.fixture(scope="module")
def other(tiny_llama, tmp_path_factory) -> Path:
    """The tiny model with another norm."""
    folder = tmp_path_factory.mktemp("other") / "m"
    shutil.copytree(tiny_llama, folder)
    weights = tensors(folder)
    weights["model.norm.weight"][3] = 2.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def infinite_z(stream, monkeypatch) -> None:
    """The embedding of "Z", which no document of the stream has, is infinite behind the check of weights."""
    z = load_tokenizer(locate(stream["model"])).encode("Z")

    def infinite(*arguments: Any, **options: Any) -> Model:
        model = load(*arguments, **options)
        table = model.params["embed"]["weight"].at[np.array(z)].set(np.inf)
        return dataclasses.replace(model, params={**model.params, "embed": {"weight": table}})

    monkeypatch.setattr("e2wm_jax.fisher.command.run.load", infinite)


def with_z(stream: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    """The corpus with two documents that have a Z, behind blank ones."""
    lines = Path(stream["data"][0]).read_text().splitlines()
    lines.insert(2, '{"text": "See the Z of the tv and of the sink."}')
    lines += ['{"text": " "}', '{"text": "Z"}', '{"text": "Zoe walks to the door of the fridge."}']
    path = folder / "z.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return {**stream, "data": (str(path),), **changes}


@pytest.mark.parametrize(("layout", "max_length"), [("rows", 16), ("packed", 32)])
def test_documents_that_are_not_finite_are_named_and_can_be_left_out(
    stream, uninterrupted, infinite_z, tmp_path, capsys, layout, max_length
):
    """Without them F is that of the whole model: none of the others has a Z."""
    options = with_z(stream, tmp_path, layout=layout, max_length=max_length)
    out = tmp_path / "f"
    assert main(flags(options, out, "--checkpoint-minutes", "1e-9")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "loss or gradient is not finite" in message
    named = set(re.findall(r"z\.jsonl:(\d+)", message))
    assert named
    assert named <= {"3", "16"}  # and not their neighbors in a row

    assert re.search(rf"leave such documents out with --resume --skip-nonfinite; \d+ examples .*kept in {out}", message)
    assert main(flags(options, out, "--resume", "--skip-nonfinite")) == 0
    assert record(out)["skipped"] == [f"{options['data'][0]}:{line}" for line in (3, 16)]
    assert record(out)["samples"] == 12
    assert worst_error(tensors(out), uninterrupted) < 5e-6


def test_a_model_that_is_not_finite_leaves_no_document(stream, tiny_llama, tmp_path, capsys):
    shutil.copytree(tiny_llama, tmp_path / "m")
    weights = tensors(tmp_path / "m")
    weights["model.norm.weight"][3:5] = 3e38
    save_file(weights, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    options = {**stream, "model": str(tmp_path / "m"), "samples": 2}
    assert main(flags(options, tmp_path / "f", "--skip-nonfinite")) == 2
    assert "no document is left" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "f/fisher.json").exists()


def test_sums_beyond_float32_are_refused_by_name():
    with pytest.raises(InputError, match=r"layers\.q\.weight: squares of gradients exceed float32"):
        check_finite({"norm.weight": jnp.ones(3), "layers.q.weight": jnp.asarray([1, jnp.inf])})


# ---------------------------------------------------------------------------------------------------- several corpora


@pytest.fixture(scope="module")
def first(stream, tmp_path_factory) -> Path:
    """F of other text."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "a.txt").write_text("The dog jumps.\n\nHow many plates? 27\n\nA fox.\n\nIs it 13?")
    run(FisherSettings(out=folder / "f", **{**stream, "data": (str(folder / "a.txt"),)}))
    return folder / "f"


def test_corpora_add_up_with_decay(stream, uninterrupted, first, tmp_path):
    run(FisherSettings(out=tmp_path / "b", previous=first, decay=0.25, **stream))
    before, found = tensors(first), tensors(tmp_path / "b")
    expected = {name: value + np.float32(0.25) * before[name] for name, value in uninterrupted.items()}
    assert worst_error(found, expected) < 1e-7
    run(FisherSettings(out=tmp_path / "c", previous=tmp_path / "b", decay=0.5, dtype="uint8", **stream))
    made_of = record(tmp_path / "c")["corpora"]
    assert [(one["weight"], one["samples"]) for one in made_of] == [(0.125, 4), (0.5, 12), (1.0, 12)]
    assert made_of[0]["data"] == record(first)["data"]
    # Codes are read as what they stand for.
    run(FisherSettings(out=tmp_path / "d", previous=tmp_path / "c", **stream))
    expected = {name: value + 0.5 * found[name] + value for name, value in uninterrupted.items()}
    assert worst_error(tensors(tmp_path / "d"), expected) < 0.01


def test_a_fisher_that_does_not_add_up_is_refused(stream, first, other, tmp_path):
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            run(FisherSettings(**{**stream, "out": tmp_path / "f", "previous": first, **changes}))
        assert not (tmp_path / "f").exists()

    refused("estimated with --labels data, not sampled", labels="sampled")
    refused("estimated with --reduction mean, not sum", reduction="sum")
    refused(r"lacks lm_head\.weight .*give the --params", params="all")
    refused(r"has model\.layers\.1\..*which --params leaves out", params=r"model\.layers\.0\..*[qv]_proj\.weight")
    refused("computed for another model", model=str(other))
    refused("no fisher.json in it", previous=Path(stream["model"]))
    shutil.copytree(first, tmp_path / "negative")
    damaged = tensors(first)
    name = sorted(damaged)[0]
    damaged[name].flat[1] = -1
    save_file(damaged, tmp_path / "negative/model.safetensors")
    refused(rf"negative: {re.escape(name)} of model\.safetensors holds -1\.0", previous=tmp_path / "negative")
    refused("--decay 0.5 needs --previous", previous=None, decay=0.5)
    refused("--decay 0: must be above 0", decay=0)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": "("}, "not a regular expression"),
        ({"params": "nothing"}, r"matches no parameter; .*e\.g\. model\.layers\.0\.self_attn\.q_proj\.weight"),
        ({"samples": 0}, "--samples 0: must be at least 1"),
        ({"max_length": 1}, "--max-length 1: must be at least 2"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"checkpoint_minutes": -1.0}, "--checkpoint-minutes -1.0: must be"),
        ({"mesh": "rows=8"}, "unknown axis 'rows'"),
        ({"kernel": "mosaic_gpu"}, "--kernel mosaic_gpu: is a kernel for a GPU, and this runs on cpu"),
        ({"mesh": "data=8", "method": "vmap"}, "--mesh data=8: --method vmap works on one device"),
        (
            {"mesh": "data=2,fsdp=2,tensor=2", "batch_size": 6},
            r"--batch-size 6: must be a multiple of .* = 4 .*give e\.g\. 8",
        ),
    ],
)
def test_impossible_settings_are_refused_and_nothing_is_written(tiny_llama, text_file, tmp_path, changes, message):
    settings = {"model": str(tiny_llama), "data": (str(text_file),), "out": tmp_path / "f", **changes}
    with pytest.raises(InputError, match=message):
        run(FisherSettings(**settings))
    assert not (tmp_path / "f").exists()


def test_output_directory_that_holds_something_is_refused(tiny_llama, text_file, written):
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    with pytest.raises(InputError, match=r"--out .* already holds something"):
        run(FisherSettings(model=str(tiny_llama), data=(str(text_file),), out=written))
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("x\n\ny\n", "no document of two tokens or more"), ("", "no documents"), (" \n\n \n", "no documents")],
)
def test_text_without_a_token_to_predict_is_refused(tiny_llama, tmp_path, text, message):
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        run(FisherSettings(model=str(tiny_llama), data=(str(tmp_path / "short.txt"),), out=tmp_path / "f"))


def test_positions_that_the_model_lacks_are_refused(save_llama, tiny_llama, tmp_path, monkeypatch):
    """Dynamic rotary scaling looks at the longest document of a batch: F would depend on the batches."""
    monkeypatch.setattr("e2wm_jax.fisher.command.run.load", lambda *_, **__: pytest.fail("the model was loaded"))
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    save_llama(tmp_path / "m", max_position_embeddings=16, rope_parameters=scaled)
    (tmp_path / "long.txt").write_text(f"A plate.\n\n{'13 apples ' * 10}")
    with pytest.raises(InputError, match=r"long\.txt:3: \d+ tokens, but beyond 16 .*give --max-length 16"):
        run(FisherSettings(model=str(tmp_path / "m"), data=(str(tmp_path / "long.txt"),), out=tmp_path / "f"))

    config = dataclasses.replace(MODELS["gpt-neo-125m"], max_positions=16)
    corpus = Corpus((Row(np.zeros(17, np.int32), 1),), ("pydoc:fisher, document 1",), 0)
    with pytest.raises(InputError, match=r"pydoc:fisher, document 1: 17 tokens, but the model has 16 positions"):
        check_corpus(None, config, corpus)


def test_places_are_those_an_editor_shows(tmp_path, tiny_llama):
    text = "\n\n  one two\nstill one\n \n\t\nthree four\n\n\nfive six"
    (tmp_path / "a.txt").write_text(text)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('\n{"text": "one"}\n{"text": " "}\n\n{"text": "two"}\n')
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl.gz"), "pydoc:fisher"]
    corpus = read_corpus(
        load_tokenizer(locate(str(tiny_llama))), paths, samples=None, max_length=9, special_tokens=True
    )
    found = [corpus.places[number].removeprefix(f"{tmp_path}/") for number in (0, 1, 2, 3, 4, 5, 11)]
    assert found[:5] == ["a.txt:3", "a.txt:7", "a.txt:10", "b.jsonl.gz:2", "b.jsonl.gz:5"]
    assert found[5:] == ["pydoc:fisher, document 1", "pydoc:fisher, document 7"]
    assert read_documents(paths[0]) == ["one two\nstill one", "three four", "five six"]


# ------------------------------------------------------------------------------------------------- devices and hosts


@pytest.fixture
def eight_devices() -> None:
    if jax.device_count() != 8:
        pytest.skip(f"needs 8 devices, there are {jax.device_count()}")


@pytest.mark.usefixtures("eight_devices")
def test_a_pass_on_a_mesh_is_the_same_and_goes_on_bit_for_bit(stream, uninterrupted, tmp_path, at_batch, monkeypatch):
    options = {**stream, "mesh": "data=2,fsdp=2,tensor=2", "batch_size": 4}
    run(FisherSettings(out=tmp_path / "whole", **options))
    assert worst_error(tensors(tmp_path / "whole"), uninterrupted) < 5e-6
    assert record(tmp_path / "whole")["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    at_batch(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(FisherSettings(out=tmp_path / "f", **options))
    monkeypatch.undo()
    with pytest.raises(InputError, match="the unfinished pass has --mesh ="):
        run(FisherSettings(out=tmp_path / "f", resume=True, **{**options, "mesh": "data=4,tensor=2"}))
    run(FisherSettings(out=tmp_path / "f", resume=True, **options))
    assert_equal(tensors(tmp_path / "f"), tensors(tmp_path / "whole"))


_HOST = """
import os, signal, sys
from e2wm_jax.cli import main
from e2wm_jax.fisher import diagonal
from e2wm_jax.fisher.command import streaming

def accumulate(*arguments):
    for now in diagonal.accumulate(*arguments):
        if now.batches == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGTERM)
        yield now

streaming.accumulate = accumulate
sys.exit(main(sys.argv[2:]))
"""


def on_two_hosts(arguments: list[str], stop_second_at: int) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = []
    for index in range(2):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"]),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-c", _HOST, str(stop_second_at * index), *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        hosts.append(subprocess.Popen(command, env=environment, **pipes))
    said = [host.communicate(timeout=300) for host in hosts]
    return [(host.returncode, *texts) for host, texts in zip(hosts, said, strict=True)]


@pytest.mark.slow
def test_two_hosts_of_four_devices_give_the_fisher_of_one(stream, uninterrupted, tmp_path):
    """Stopped on the second host after two of three batches, and continued."""
    out = tmp_path / "f"
    settings = {**stream, "mesh": "data=2,fsdp=2,tensor=2", "batch_size": 4}
    stopped = on_two_hosts(flags(settings, out, "--distributed"), 2)
    assert [code for code, _, _ in stopped] == [130, 130], stopped
    assert "stopped after 8 of 12 examples" in stopped[0][2]
    assert sorted(path.name for path in (out / "partial/00000002").iterdir()) == [
        "host-00000",
        "host-00001",
        "state.json",
    ]
    finished = on_two_hosts(flags(settings, out, "--distributed", "--resume", "--json"), 0)
    assert [code for code, _, _ in finished] == [0, 0], finished
    result = json.loads(finished[0][1].splitlines()[-1])
    assert (result["samples"], result["resumed_after"]) == (12, 8)
    assert worst_error(tensors(out), uninterrupted) < 5e-6
    assert record(out)["hosts"] == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "fisher.json",
        "model.safetensors",
        "report.html",
    ]
