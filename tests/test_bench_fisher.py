"""`e2wm bench fisher`: its gradients are gradients, its passes give one F, and a wrong F is called wrong."""

import dataclasses
import functools
import json
import os
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.bench import fisher
from e2wm_jax.bench.fisher import FisherBenchSettings
from e2wm_jax.bench.jobs.fisher import SHAPES, FisherJob, compare, documents, reference_folder
from e2wm_jax.bench.ours.fisher import corpus, operations, selected
from e2wm_jax.bench.ours.gradient import WAYS, batch_gradient
from e2wm_jax.bench.pages.fisher import verdict
from e2wm_jax.bench.peers import fisher as fisher_peers
from e2wm_jax.bench.peers.fisher import PACKAGES, PeerPass, peer_operations
from e2wm_jax.bench.process import Peer
from e2wm_jax.cli import main
from e2wm_jax.data.batch import Row
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.documents import document_batches
from e2wm_jax.models import decoder
from e2wm_jax.storage.tensor_files import open_tensors

SMALL = FisherBenchSettings(shape="tiny", length=12, batch_size=3, rounds=1, against=(), cores=0)
JOB = FisherJob(shape="tiny", lengths=(12, 12, 12), batch_size=3, step_size=2, row=12, cores=0, clock="cpu")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job whose reference and weights are there, and what the process of ours can be asked for."""
    job = dataclasses.replace(JOB, folder=str(tmp_path_factory.mktemp("job")), row=24)
    ours = operations(job)
    ours["save"](weights=True)
    return job, ours


def test_every_way_is_the_gradient_of_the_mean_loss():
    """Against jax.grad of a loss written out here, for documents of unequal lengths and more words than a chunk."""
    config = dataclasses.replace(SHAPES["tiny"], vocab_size=5000)
    params = decoder.initialize(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    rows = [Row(rng.integers(0, 5000, length).astype(np.int32), 1) for length in (9, 16, 12)]

    def loss(params):
        ids = np.stack([np.pad(row.ids, (0, 16 - len(row.ids))) for row in rows])
        order = np.broadcast_to(np.arange(16), ids.shape)
        hidden = decoder.hidden_states(config, params, ids, order, np.zeros_like(ids))
        scores = jax.nn.log_softmax(decoder.logits(config, params, hidden))
        nll = [-jnp.mean(scores[n, np.arange(len(r.ids) - 1), r.ids[1:]]) for n, r in enumerate(rows)]
        return sum(nll) / len(rows)

    expected = jax.jit(jax.grad(loss))(params)
    (batch,) = document_batches(rows, 3, 16)
    for way in ("stored", "recomputed, chunked loss"):
        found = jax.jit(lambda p, way=way: batch_gradient(config, p, batch, **WAYS[way]))(params)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=5e-6 * float(jnp.abs(b).max()))


def test_our_methods_give_one_f_however_often_they_run(job):
    made, ours = job
    for method in ("vmap", "fused-qv", "corpus: packed"):
        facts = ours["prepare"](method=method)
        ours["measure"](method=method)
        found = ours["check"](method=method)
        assert found["error"] < 5e-6, method
        assert (found["missing"], found["wrong"]) == (0, 0)
        assert found["tensors"] == (4 if method == "fused-qv" else 20)
        assert facts["documents"] == len(made.lengths)
        assert 0 < facts["extra_bytes"] < facts["peak_bytes"]


def test_the_reference_is_the_mean_of_squares(job):
    """Against the ordinary gradient of each document by itself, for a table and a matrix of the second layer."""
    made, _ = job
    config = SHAPES["tiny"]
    params = decoder.initialize(config, jax.random.key(0))
    gradient = jax.jit(functools.partial(batch_gradient, config))
    batches = document_batches(documents(made, config.vocab_size), 1, 12)
    gradients = [gradient(params, batch) for batch in batches]
    assert len(gradients) == 3
    reference = open_tensors(reference_folder(made))
    for name, pick in (
        ("model.embed_tokens.weight", lambda g: g["embed"]["weight"]),
        ("model.layers.1.mlp.up_proj.weight", lambda g: g["layers"]["up"]["weight"][1]),
    ):
        expected = np.mean([np.square(pick(g)) for g in gradients], axis=0)
        np.testing.assert_allclose(reference.read(name), expected, atol=5e-6 * expected.max())


def test_a_wrong_peer_is_called_wrong(job):
    """One tensor twice too large, and one left out."""
    made, _ = job
    reference = open_tensors(reference_folder(made))
    sums = {name: reference.read(name) * len(made.lengths) for name in reference.names}

    def of_peer(sums):
        asked = peer_operations(made, PeerPass(lambda: sums))
        assert asked["prepare"]().keys() == {"grown_bytes"}
        asked["measure"]()
        found = asked["check"]()
        return found["error"], verdict(found)

    error, said = of_peer(sums)
    assert error < 1e-6
    assert "WRONG" not in said
    wrong = {**sums, "model.embed_tokens.weight": 2 * sums["model.embed_tokens.weight"]}
    del wrong["model.norm.weight"]
    error, said = of_peer(wrong)
    assert error == pytest.approx(1, rel=1e-6)
    assert said == "1.0e+00; WRONG in 1 of 19 tensors, e.g. model.embed_tokens.weight; 1 tensors missing"
    bad = {"model.norm.weight": np.full(64, np.nan), "model.embed_tokens.weight": np.zeros((2, 2))}
    assert compare(made, bad.items())["wrong"] == 2


@pytest.mark.parametrize("peer", ["official", "torch-func"])
def test_torch_peers_give_our_f(job, peer, torch_oracle):
    made, _ = job
    theirs = dataclasses.replace(made, model=made.folder, shape=None, cores=1)
    with Peer(peer, theirs, module="e2wm_jax.bench.peers.fisher") as process:
        assert process.ask("prepare")["grown_bytes"] >= 0
        process.ask("measure")
        found = process.ask("check")
    assert found["tensors"] == 20
    assert found["missing"] == 0
    assert found["error"] < 1e-4


def test_layouts_hold_the_same_documents():
    job = dataclasses.replace(JOB, lengths=(5, 12, 7, 3, 9), row=24)
    config = SHAPES["tiny"]
    held = {layout: corpus(job, config, layout) for layout in fisher.LAYOUTS}
    ids = {
        layout: sorted(
            tuple(batch.ids.reshape(-1)[start : start + length])
            for batch in batches
            for start, length in zip(batch.starts, batch.lengths, strict=True)
            if length
        )
        for layout, batches in held.items()
    }
    assert ids["padded"] == ids["rows"] == ids["packed"]
    assert [len(row) for row in ids["full"]] == [12] * 3
    assert {batch.ids.shape for batch in held["padded"]} == {(2, 12)}
    assert {batch.ids.shape for batch in held["packed"]} == {(1, 24)}


OWN = """
import jax, jax.numpy as jnp

def vmapped(config, params, ids, loss):
    print("what a method prints is no answer")
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, ids)
    return jax.tree.map(lambda g: jnp.mean(g**2, 0), gradients)

def of_the_batch(config, params, ids, loss):
    gradient = jax.grad(lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, ids)))(params)
    return jax.tree.map(jnp.square, gradient)

def bare(config, params, ids, loss):
    return {name: jnp.zeros(()) for name in params}

def broken(config, params, ids, loss):
    raise RuntimeError("no such thing")
"""


def test_a_run_without_peers(tmp_path, monkeypatch, capsys):
    """In a process of its own: the table and the page, and how to get what is not installed."""
    monkeypatch.setattr(fisher_peers, "missing", lambda peer: PACKAGES[peer].install)
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path / 'own.py'}:vmapped"
    settings = dataclasses.replace(SMALL, methods=("fused",), method_from=(own,), params=r".*(q_proj|norm)\.weight")
    settings = dataclasses.replace(settings, against=("official",), rounds=2, out=tmp_path / "report")
    report = json.loads(json.dumps(fisher.run(settings)))
    row, of_own = report["rows"]
    assert (of_own["method"], of_own["side"], of_own["tensors"]) == (own, "own", row["tensors"])
    assert of_own["error"] < 5e-6
    assert of_own["over_fused_range"][0] <= of_own["over_fused"] <= of_own["over_fused_range"][1]
    assert len(of_own["rounds"]) == 2
    assert row["method"] == "fused"
    assert row["error"] < 5e-6
    assert row["examples_per_second"] == pytest.approx(3 / row["seconds"], rel=0.05)
    assert row["extra_parameters"] == pytest.approx(row["extra_bytes"] / 4 / report["parameters"], abs=1e-3)
    assert report["not_installed"] == {"official": "pip install 'e2wm_jax[peers]'"}
    assert sorted(os.listdir(tmp_path / "report")) == ["report.html", "report.json"]
    assert "not installed: pip install" in (tmp_path / "report/report.html").read_text()
    fisher.show(report)
    shown = capsys.readouterr().out
    assert re.search(r"official +not installed: pip install", shown)
    assert report["processor"] in shown, "the processor is named"


def test_methods_of_ones_own(job, tmp_path):
    """The right one is right; the square of a batch's gradient is called wrong; what cannot run says why."""
    (tmp_path / "own.py").write_text(OWN)
    _, ours = job
    for name, said in (
        ("vmapped", r"[\d.]+e-0[6789]"),
        ("of_the_batch", r".*; WRONG in \d+ of 20 tensors.*"),
        ("bare", r"failed: ValueError: .* has shape \(\), in params .*"),
        ("broken", "failed: RuntimeError: no such thing"),
    ):
        method = f"{tmp_path / 'own.py'}:{name}"
        facts = ours["prepare"](method=method, own=True)
        if "failed" not in facts:
            ours["measure"](method=method)
            assert facts["extra_bytes"] > 0
            facts |= ours["check"](method=method)
        assert re.fullmatch(said, verdict(facts)), (name, verdict(facts))


def test_a_report_is_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fisher, "_process", Told)
    monkeypatch.setattr(fisher_peers, "missing", lambda peer: "")
    Told.begin()
    for name, length in (("first", 12), ("second", 16)):
        settings = dataclasses.replace(SMALL, rounds=1, length=length, methods=("textbook", "fused"))
        fisher.run(dataclasses.replace(settings, out=tmp_path / name))
    page = tmp_path / "first/report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(tmp_path / "first")]) == 0
    assert page.read_text() == before
    words = [
        "report",
        str(tmp_path / "second"),
        "--before",
        str(tmp_path / "first"),
        "--out",
        str(tmp_path / "both.html"),
    ]
    assert main(words) == 0
    html = (tmp_path / "both.html").read_text()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html.rpartition("Beside ")[2])
    assert cells[:8] == ["textbook", "2.000", "9.000", "4.500", "fused", "1.000", "4.500", "4.500"]
    assert "Settings that differ: length: 12, now 16." in html
    (tmp_path / "first/report.json").write_text('{"settings": {}, "rows": [{}]}')
    assert main(["report", str(tmp_path / "first")]) == 2
    assert "report.json is not as an e2wm command writes it" in capsys.readouterr().err


class Told:
    """Stands for a process: takes as long as it is told, round by round."""

    SECONDS: ClassVar = {
        "textbook": [2.0, 9.0, 3.0, 2.0, 2.0, 2.0],  # a slow second round; then beside the second peer
        "fused": [1.0, 4.5, 1.0, 1.0, 1.0, 1.0],
        "official": [4.0, 18.0, 4.0],
        "opacus": [8.0, 8.0, 8.0],
        "corpus: full": [1.0, 1.0, 1.0],
        "corpus: padded": [2.0, 2.0, 2.0],
        "corpus: rows": [1.5, 1.5, 1.5],
        "corpus: packed": [1.25, 1.25, 1.25],
    }
    left: ClassVar = {}

    @classmethod
    def begin(cls):
        cls.left = {name: iter(seconds) for name, seconds in cls.SECONDS.items()}

    def __init__(self, side, job):
        self.side, self.tokens = side, sum(job.lengths)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def ask(self, operation, method=None, **options):
        del options
        name = method or self.side
        facts = {
            "describe": {"parameters": 1000, "selected": 1000, "device": "cpu", "jax": "0", "gflops": 1.0},
            "prepare": {"grown_bytes": 12000, "failed": "Error: no"}
            if name == "torch-func"
            else {"grown_bytes": 12000},
            "check": {"error": 0.9, "worst": "w", "tensors": 2, "missing": 0, "wrong": 1, "first_wrong": "w"},
        }
        if operation == "prepare" and self.side == "ours":
            facts["prepare"] = {"documents": 4, "tokens": self.tokens, "places": 2 * self.tokens, "extra_bytes": 400}
        seconds = next(self.left[name]) if operation == "measure" else 1.0
        return {"seconds": seconds, **facts.get(operation, {})}


def test_ratios_are_medians_of_rounds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fisher, "_process", Told)
    monkeypatch.setattr(fisher_peers, "missing", lambda peer: "")
    Told.begin()
    asked = dataclasses.replace(
        SMALL, rounds=3, methods=("textbook", "fused"), against=("official", "torch-func", "opacus"), out=tmp_path / "a"
    )
    report = fisher.run(asked)
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["fused"]["over_textbook"] == 0.5  # of 1/2, 4.5/9, 1/3
    assert rows["fused"]["times_official"] == 4
    assert rows["fused"]["seconds"] == 1
    assert rows["fused"]["extra_parameters"] == 0.1
    assert rows["opacus"]["over_fused"] == 8
    assert rows["opacus"]["times_official"] == pytest.approx(rows["official"]["over_textbook"] / 4)
    assert rows["fused"]["over_textbook_range"] == [0.333, 0.5]
    assert rows["fused"]["rounds"] == [1, 4.5, 1]
    assert rows["opacus"]["beside"]["textbook"] == {"seconds": 2, "rounds": [2, 2, 2]}
    assert rows["opacus"]["grown_parameters"] == 2  # three times the parameters, F among them
    fisher.show(report)
    shown = capsys.readouterr().out
    assert "WRONG in 1 of 2 tensors, e.g. w" in shown
    assert "failed: Error: no" in shown
    assert "examples/s" in shown
    (of_opacus,) = (line.split() for line in shown.splitlines() if line.startswith("opacus"))
    # A ratio to the official loop would be of two measurements; what it is set against stands below.
    expected = "opacus 8 [8, 8] 0.38 4.00 [4.00, 4.00] 8.00 2.00 9.0e-01; WRONG in 1 of 2 tensors, e.g. w"
    assert of_opacus == expected.split()
    assert re.search(r"textbook, beside opacus +2 \[2, 2\]\n", shown)
    html = (tmp_path / "a/report.html").read_text()
    assert "textbook, beside opacus" in html
    assert "opacus: peer 2." in html, "the memory of peers is drawn"

    packed = fisher.run(dataclasses.replace(asked, packed=True, shortest=4, documents=5, out=tmp_path / "b"))
    assert [row["over_full"] for row in packed["rows"]] == [1, 2, 1.5, 1.25]
    assert packed["rows"][0]["real_share"] == 0.5
    fisher.show(packed)
    assert "packed" in capsys.readouterr().out
    assert "Time per real token" in (tmp_path / "b/report.html").read_text()


def test_parameters_are_chosen_by_name():
    config = SHAPES["neo6"]
    assert len(selected(config, "lora-targets")) == 6
    assert selected(config, r".*\.q_proj\.weight") == {"layers.q.weight"}
    with pytest.raises(InputError, match="--params 'nothing' matches no parameter"):
        selected(config, "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "bert"}, "--shape bert: unknown; choose from neo6, tiny"),
        ({"length": 600}, "--length 600: the model has 512 positions"),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"params": "("}, r"--params '\(': not a regular expression"),
        ({"method_from": ("nowhere.py:f",)}, "--method-from nowhere.py:f: nowhere.py: no such file"),
        ({"method_from": ("nowhere:f",)}, "no module nowhere is installed; give the file, nowhere.py:f"),
        ({"method_from": ("own",)}, "--method-from own: write FILE.py:FUNCTION or MODULE:FUNCTION"),
        ({"method_from": (f"{__file__}:missing",)}, "test_bench_fisher.py has no function missing; it has job, test_"),
        ({"packed": True, "shortest": 13}, "--shortest 13: at most --length 12"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        fisher.run(dataclasses.replace(SMALL, **change))
