"""`e2wm report`: it sees what a path holds, draws it, and a browser shows every page whole, on desk and phone."""

import json
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from e2wm_jax.cli import main
from e2wm_jax.config import LoraConfig
from e2wm_jax.experience.collect.command import collect
from e2wm_jax.experience.collect.jobs import CollectSettings
from e2wm_jax.experience.collect.shards import load_trajectories
from e2wm_jax.fisher.command.run import FisherSettings
from e2wm_jax.fisher.command.run import run as run_fisher
from e2wm_jax.report.numbers import number
from e2wm_jax.storage.files import write_json, write_json_lines
from e2wm_jax.train.run import run as run_training
from e2wm_jax.train.sequence.page import write_report as write_sequence
from e2wm_jax.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("quick_compilation")

SENTENCE = "The quick brown fox jumps over the dog.\n\nMary walks to the fridge.\n\nA plate and 27 cats.\n"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0")


def report(*words: object) -> int:
    return main(["report", *map(str, words), "--json"])


def drawn(*words: object, out: Path) -> str:
    assert report(*words, "--out", out) == 0
    return out.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- what there is to draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def fisher(tiny_llama: Path, folder: Path) -> Path:
    (folder / "general.txt").write_text(SENTENCE)
    out = folder / "fisher"
    run_fisher(FisherSettings(model=str(tiny_llama), data=(str(folder / "general.txt"),), out=out, max_length=32))
    return out


@pytest.fixture(scope="module")
def training(tiny_llama: Path, folder: Path) -> Path:
    rows = [{"input": f"How to get {n}?", "ref": "Walk to the hall."} for n in range(4)]
    write_json_lines(folder / "plan_gen.json", rows)
    settings = TrainSettings(
        model=str(tiny_llama),
        data=f"1 {folder / 'plan_gen.json'}",
        out=folder / "run",
        regularizer="l2",
        strength=1.0,
        lora=LoraConfig(rank=2),
        steps=3,
        batch_size=2,
        max_length=24,
    )
    run_training(settings)
    return settings.out


def evaluation(out: Path, *, accuracy: float, rouge: float, choices: list[int], wrote: list[str]) -> Path:
    """A directory of `eval all --out`, by hand."""
    sets = {
        "counting_qa": {
            "kind": "qa", "accuracy": accuracy, "n": 4, "majority": 0.375,
            "intervals": {"accuracy": [accuracy - 0.1, accuracy + 0.2]}, "defects": ["the answer is always 1"],
        },
        "plan_gen": {"kind": "generate", "rougeL": rouge, "rouge1": rouge + 0.05, "n": 3, "intervals": {}},
        "babi": {
            "kind": "babi", "accuracy": {"1": accuracy, "2": 0.25}, "mean": (accuracy + 0.25) / 2,
            "n": {"1": 4, "2": 4}, "majority": {"1": 0.5, "2": 0.25},
            "intervals": {"1": [0.0, 1.0], "2": [0.0, 0.75], "mean": [0.25, 0.75]},
        },
        "topics": {"kind": "perplexity", "nats": 3.25, "perplexity": 25.8, "n": 9},
    }  # fmt: skip
    write_json_lines(out / "plan_gen.json", [{"input": f"How to see room {n}?", "ref": "Walk."} for n in range(3)])
    record = {"version": 1, "model": "tiny", "adapter": [], "settings": {"data": [str(out / "plan_gen.json")]}}
    write_json(out / "results.json", record | {"sets": sets})
    answers = [{"index": n, "scores": [0.0, 0.0], "choice": c, "gold": 1} for n, c in enumerate(choices)]
    write_json_lines(out / "predictions/counting_qa.jsonl", answers)
    texts = [{"index": n, "prediction": text, "reference": f"1. Walk to <room {n}>"} for n, text in enumerate(wrote)]
    write_json_lines(out / "predictions/plan_gen.jsonl", texts)
    return out


@pytest.fixture(scope="module")
def before(folder: Path) -> Path:
    wrote = ["I do not know & do not care", "", "hello " * 300]
    return evaluation(folder / "eval-base", accuracy=0.4, rouge=0.1, choices=[1, 0, 1, 0], wrote=wrote)


@pytest.fixture(scope="module")
def after(folder: Path) -> Path:
    wrote = [f"1. Walk to the room {n}" for n in range(3)]
    return evaluation(folder / "eval-ewc", accuracy=0.65, rouge=0.5, choices=[1, 1, 0, 0], wrote=wrote)


@pytest.fixture(scope="module")
def experiences(folder: Path) -> Path:
    out = folder / "lived"
    collect(CollectSettings(out, "random", episodes=2, scene=("procedural:7",), episode_length=9, workers=1, seed=1))
    return out


def room(number: int, name: str, x: float, width: float) -> dict[str, Any]:
    box = {"center": [x, 1.5, 0.0], "size": [width, 3.0, 4.0]}
    return {
        "id": number, "class_name": name, "category": "Rooms", "properties": [], "states": [], "bounding_box": box
    }  # fmt: skip


def thing(number: int, name: str, x: float, z: float, *properties: str) -> dict[str, Any]:
    box = {"center": [x, 1.0, z], "size": [0.4, 0.4, 0.4]}
    return {
        "id": number, "class_name": name, "category": "Props", "properties": list(properties), "states": [],
        "bounding_box": box,
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured_home(folder: Path) -> Path:
    """An episode, partly failed, in a home whose scene knows where everything is."""
    nodes = [room(1, "kitchen", 0.0, 4.0), room(2, "bedroom", 5.0, 6.0)]
    nodes += [thing(3, "character", 4.0, 1.0), thing(4, "mug", -1.0, 1.0, "GRABBABLE"), thing(5, "bed", 7.0, -1.0)]
    inside = [(3, 2), (4, 1), (5, 2)]
    edges = [{"from_id": a, "relation_type": "INSIDE", "to_id": b} for a, b in inside]
    write_json(folder / "home.json", {"nodes": nodes, "edges": edges})
    steps = [
        {"a": "[Walk] <mug> (4)", "ok": 1, "e+": [[3, "INSIDE", 1]], "e-": [[3, "INSIDE", 2]]},
        {"a": "[Grab] <mug> (4)", "ok": 1, "e+": [[3, "HOLDS_RH", 4]]},
        {"a": "[Walk] <bed> (5)", "ok": 1, "e+": [[3, "INSIDE", 2], [4, "INSIDE", 2]]},
        {"a": "[Drink] <mug> (4)", "ok": 1},
        {"a": "[PutBack] <mug> (4) <bed> (5)", "ok": 1, "e-": [[3, "HOLDS_RH", 4]], "e+": [[4, "ON", 5]]},
        {"a": "[Open] <bed> (5)", "ok": 0, "msg": ["cannot be opened"]},
    ]
    record = {
        "episode": 0, "id": "x-0", "scene": str(folder / "home.json"), "dialect": "vh23", "policy": "mcts", "seed": 0,
        "task": "drink in bed", "goal": ["mug || ON || bed"], "achieved": ["mug || ON || bed"], "items": [],
        "conditions": [], "return": 1.0, "search": {}, "classes": {}, "steps": steps,
    }  # fmt: skip
    out = folder / "at-home"
    write_json_lines(out / "shard-00000.jsonl", [record])
    write_json(out / "manifest.json", {"format": 1, "settings": {"policy": "mcts"}, "complete": True})
    return out


@pytest.fixture(scope="module")
def comparison(tiny_llama: Path, folder: Path) -> Path:
    places = ["kitchen", "bedroom"]
    questions = [{"input": f"Where is mug {n}?", "answer": places[n % 2], "answer_list": places} for n in range(4)]
    (folder / "sets").mkdir()
    write_json_lines(folder / "sets/obj_move.json", questions)
    asked = [{"input": f"How to find mug {n}?", "ref": "Walk to the kitchen. Grab the mug."} for n in range(2)]
    write_json_lines(folder / "sets/plan_gen.json", asked)
    write_json_lines(folder / "task.json", [{"input": one["input"], "ref": one["answer"]} for one in questions])
    write_json_lines(folder / "text.jsonl", [{"text": SENTENCE}])
    words = ["--model", tiny_llama, "--data", f"1 {folder / 'task.json'}", "--eval", folder / "sets"]
    words += ["--text", folder / "text.jsonl", "--regularizers", "none,l2,ewc", "--strengths", "l2:1"]
    words += ["ewc:1", "--general-text", folder / "text.jsonl", "--steps", 2, "--max-length", 32]
    out = folder / "compared"
    assert main(["compare", "--out", str(out), "--max-new-tokens", "4", "--beams", "1", *map(str, words)]) == 0
    return out


@pytest.fixture(scope="module")
def pages(
    fisher: Path, training: Path, before: Path, after: Path, experiences: Path, measured_home: Path, comparison: Path,
    folder: Path,
) -> dict[str, Path]:  # fmt: skip
    """One page of each kind."""
    out = folder / "drawn"
    commands: dict[str, tuple[object, ...]] = {
        "fisher": (fisher,),
        "run": (training, "--before", before, "--after", after),
        "evaluation": (after, "--before", before),
        "predictions": (after / "predictions/plan_gen.jsonl",),
        "experiences": (experiences,),
        "floor plan": (measured_home,),
        "comparison": (comparison,),
        "run of a comparison": (comparison / "runs/ewc/seed-0",),
    }
    for name, words in commands.items():
        assert report(*words, "--out", out / f"{name}.html") == 0
    return {name: out / f"{name}.html" for name in commands}


# ------------------------------------------------------------------------------------------------- what a page shows


def test_a_run_shows_its_losses_and_what_it_changed(
    tiny_llama: Path, training: Path, before: Path, after: Path, tmp_path: Path
):
    alone = drawn(training, out=tmp_path / "alone.html")
    rows = [json.loads(line) for line in (training / "metrics.jsonl").read_text().splitlines()]
    assert escape(number(rows[-1]["loss"])) in alone
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", alone)
    assert cells[:3] == ["task loss, nats per answer token", *(number(rows[n]["task_loss"]) for n in (0, -1))]
    assert cells[3:6] == ["penalty", "0", number(rows[-1]["penalty"])]
    size = sum(value.size for value in load_file(tiny_llama / "model.safetensors").values())
    assert f"<dd>{tiny_llama.name}, {size:,} parameters</dd>" in alone
    assert f"3 steps of LoRA on {tiny_llama.name}, held by l2 of strength 1." in alone
    assert f"went from {rows[0]['task_loss']:.3g} to {rows[-1]['task_loss']:.3g} nats per answer token." in alone
    assert all(f">{title}</figcaption>" in alone for title in ("Task loss", "Penalty", "Gradient norm"))
    assert "Questions" not in alone
    both = drawn(training, "--before", before, "--after", after, out=tmp_path / "both.html")
    assert "counting_qa: before 0.4, after 0.65, baseline 0.375." in both
    assert "I do not know &amp; do not care" in both


def test_a_run_finds_the_evaluation_in_its_own_directory(training: Path, after: Path, tmp_path: Path):
    run = shutil.copytree(training, tmp_path / "run")
    shutil.copytree(after, run / "eval")
    assert "counting_qa: after 0.65, baseline 0.375." in drawn(run, out=tmp_path / "page.html")


def test_an_evaluation_shows_every_set_and_who_changed_their_answers(before: Path, after: Path, tmp_path: Path):
    html = drawn(after, "--before", before, out=tmp_path / "page.html")
    assert "plan_gen: before 0.1, after 0.5." in html
    assert "babi: before 0.325, after 0.45, baseline 0.375." in html
    assert "task 1: before 0.4, after 0.65, baseline 0.5." in html
    # Mean of the questions' and the plans' scores, against nats.
    assert "after: general text, nats per token, mean over corpora 3.25, skill, mean over sets 0.575." in html
    assert "How to see room 2?" in html, "what was asked"
    assert "topics: before 3.25, after 3.25." in html
    assert "the answer is always 1" in html
    # Right, right by now, no longer, never: questions 0, 1, 2 and 3.
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html.partition("gained and lost</h2>")[2])[:5] == [
        "counting_qa",
        *"1111",
    ]
    assert html.count("hello") < 150, "long texts are cut"


def test_a_sequence_shows_what_each_task_changed(tmp_path: Path):
    """Differences to the row before: b is learned by 2 and makes a worse by 0.5, which is all its forgetting."""
    record = {"tasks": ["a", "b"], "losses": [[3.0, 4.0], [2.0, 4.0], [2.5, 2.0]], "text": [], "runs": []}
    settings = {"model": "tiny", "regularizer": "ewc"}
    write_sequence(tmp_path / "page.html", {**record, "scores": {"forgetting": 0.5}}, settings)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    _, _, changes = html.partition("<figcaption>Change of the loss by training a task</figcaption>")
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", changes.partition("</figure>")[0])
    assert cells == ["a", "\u22121.000", "0.000", "b", "0.500", "\u22122.000"]
    assert "a: from 0 at 0 to \u22120.5 at 2. b: from 0 at 0 to \u22122 at 2." in html
    assert "<dt>forgetting, nats</dt><dd>0.5</dd>" in html
    shown = re.findall(r">([^<]*)</text>", html)
    assert shown[:3] == ["0", "1", "2"], "no half tasks"  # the ticks of x come first
    assert "tasks trained" in shown
    write_sequence(tmp_path / "page.html", {**record, "losses": record["losses"][:1], "scores": {}}, settings)


def test_a_comparison_shows_what_was_written_and_its_fisher(comparison: Path):
    html = (comparison / "report.html").read_text(encoding="utf-8")
    _, _, shown = html.partition("What was written</h2>")
    assert "How to find mug 1?" in shown
    for name in ("base", "LoRA", "l2", "ewc"):
        assert shown.count(f"<h3>{name}") == 2, name
    assert ">Mean F by layer and module</figcaption>" in html
    (lowest, highest) = json.loads((comparison / "base/result.json").read_text())["sets"]["obj_move"]["intervals"][
        "accuracy"
    ]
    assert lowest < highest


def test_without_examples_none_is_shown(after: Path, tmp_path: Path):
    assert "What was written" not in drawn(after, "--examples", "0", out=tmp_path / "page.html")


def test_predictions_alone_are_shown(after: Path, tmp_path: Path):
    html = drawn(after / "predictions/plan_gen.jsonl", out=tmp_path / "page.html")
    assert "1. Walk to &lt;room 2&gt;" in html


def test_a_fisher_shows_where_it_is(fisher: Path, tmp_path: Path):
    html = drawn(fisher, out=tmp_path / "page.html")
    tensors = load_file(fisher / "model.safetensors")
    name, largest = max(tensors.items(), key=lambda item: item[1].sum(dtype=np.float64))
    first_row = re.search(r"<figcaption>The tensors that hold most of F</figcaption>.*?<td[^>]*>([^<]+)</td>", html)
    assert first_row is not None
    assert first_row[1] == name
    assert largest.max() > 0
    for title in ("Mean F by layer and module", "Share of F by layer", "Share of F by module"):
        assert f">{title}</figcaption>" in html
    assert "general.txt" in html
    assert html == (fisher / "report.html").read_text(encoding="utf-8"), "the command draws what it writes the same way"


def test_quantiles_and_concentration_are_those_of_the_entries():
    from e2wm_jax.fisher.command.summary import held_by_largest, merged, quantile, spread_of

    value = np.random.default_rng(0).lognormal(-14, 4, 40_000).astype(np.float32)
    value[:400] = 0
    spread = merged([spread_of(value[:15_000].reshape(3, -1)), spread_of(value[15_000:])])
    for share in (0.05, 0.5, 0.99):
        expected = float(np.quantile(value, share))
        assert expected / 1.13 <= quantile(spread, share) <= expected * 1.001
    assert quantile(spread, 0.005) == 0
    assert spread.counts.sum() == value.size
    top = np.sort(value.astype(np.float64))[-400:].sum() / value.sum(dtype=np.float64)
    assert held_by_largest(spread, 0.01) == pytest.approx(top, rel=0.01)


def test_a_fisher_of_codes_and_one_in_the_official_form_are_drawn(fisher: Path, tiny_llama: Path, tmp_path: Path):
    official = tmp_path / "official"
    official.mkdir()
    save_file(load_file(fisher / "model.safetensors"), official / "model.safetensors")
    html = drawn(official, out=tmp_path / "official.html")
    assert "There is no fisher.json" in html
    data = (str(tmp_path.joinpath("text.txt")),)
    Path(data[0]).write_text(SENTENCE)
    run_fisher(FisherSettings(model=str(tiny_llama), data=data, out=tmp_path / "codes", max_length=32, dtype="uint8"))
    codes = drawn(tmp_path / "codes", out=tmp_path / "codes.html")
    shares = [re.search(r"Bars of share\.(.*?)</desc>", page) for page in (html, codes)]
    # v_proj's share of F to three digits: 8 bits keep it.
    of_f = [float(re.search(r"v_proj: of F ([\d.]+)", found[1])[1]) for found in shares if found]  # type: ignore[index]
    assert of_f[1] == pytest.approx(of_f[0], rel=0.02)


def test_a_model_is_no_fisher(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert report(tiny_llama, "--out", tmp_path / "page.html") == 2
    said = capsys.readouterr().err
    assert "holds a model and no Fisher" in said
    assert "negative" in said
    assert "--fisher" not in said, "a flag that nobody gave"
    assert not (tmp_path / "page.html").exists()


def test_experiences_are_drawn_over_their_rooms(experiences: Path, tmp_path: Path):
    html = drawn(experiences, "--examples", "1", out=tmp_path / "page.html")
    found = next(load_trajectories([experiences]))
    described = re.search(r"<desc>(Map of 7 rooms.*?)</desc>", html)
    assert described is not None
    for n, step in enumerate(found.steps, start=1):
        verb = step.action[1:].partition("]")[0]
        assert f" {n} {verb}" in described[1]
    assert "hallway" in described[1]
    assert html.count("Map of 7 rooms") == 1


def corners(path: str) -> np.ndarray:
    """The corners of a path, (count, 2)."""
    return np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), np.float64)


def test_a_floor_plan_puts_things_where_the_scene_says(measured_home: Path, tmp_path: Path):
    html = drawn(measured_home, out=tmp_path / "page.html")
    assert "Goal: mug ON bed. Reached: 1 of 1." in html
    kitchen, bedroom = (corners(path) for path in re.findall(r'<g class="room"><path d="([^"]*)"', html))
    (x1, _), (x2, _) = kitchen.min(axis=0), bedroom.min(axis=0)
    (width1, height1), (width2, _) = np.ptp(kitchen, axis=0), np.ptp(bedroom, axis=0)
    assert width2 / width1 == pytest.approx(6 / 4, rel=0.01)
    assert x2 == pytest.approx(x1 + width1, abs=0.3)
    dots = re.findall(r'<g class="(start|stop)">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', html)
    assert [kind for kind, *_ in dots] == ["start", "stop", "stop"]
    unit = width1 / 4
    start, mug, bed = (np.array([float(x), float(y)]) for _, x, y in dots)
    np.testing.assert_allclose(mug - start, [-5 * unit, 0.0], atol=0.3)
    np.testing.assert_allclose(bed - mug, [8 * unit, 2 * unit], atol=0.3)  # a smaller z is further down
    assert height1 == pytest.approx(4 * unit, abs=0.3)
    # What is done with the mug in hand is done where the agent stands; what failed is marked.
    assert "1 Walk at mug in the kitchen. 2 Grab at mug in the kitchen. 3 Walk at bed in the bedroom." in html
    assert "4 Drink mug at bed in the bedroom. 5 PutBack mug at bed in the bedroom." in html
    assert "6 Open at bed in the bedroom, failed." in html
    assert ">bed 3, 4, 5, 6 \u2717</text>" in html, "numbers alone, where the verbs find no room"


def test_no_episode_is_left_out_without_a_word(measured_home: Path, tmp_path: Path):
    """Short ones that reached their goal and long ones that missed it: each is counted, both kinds are drawn."""
    home = shutil.copytree(measured_home, tmp_path / "home")
    shard = home / "shard-00000.jsonl"
    record = json.loads(shard.read_text())
    write_json_lines(
        shard,
        [
            {
                **record, "episode": n, "id": f"x-{n}", "task": f"task {n}", "steps": record["steps"][: 1 + n],
                "achieved": record["goal"] if n < 2 else [],
            }
            for n in range(6)
        ],
    )  # fmt: skip
    all_of_them = drawn(home, "--examples", "9", out=tmp_path / "all.html")
    assert re.findall(r"<h3>(x-\d)</h3><p>(task \d)", all_of_them.replace("\n", "")) == [
        (f"x-{n}", f"task {n}") for n in range(6)
    ]
    assert "6 of 6 are drawn: 2 that reached their goal and 4 that did not." in all_of_them
    html = drawn(home, out=tmp_path / "page.html")
    assert re.findall(r"<h3>(x-\d)</h3>", html) == ["x-0", "x-1", "x-2", "x-4"]
    assert "4 of 6 are drawn: 2 that reached their goal and 2 that did not; --examples N draws more." in html
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html))
    assert facts["steps of an episode"] == "1 to 6, median 3.5"
    assert facts["goals reached"] == "2 of 6"
    assert facts["steps that failed"] == "1"
    assert ">2.5<" not in html, "no half steps"


def test_persons_have_a_key(measured_home: Path, tmp_path: Path):
    home = shutil.copytree(measured_home, tmp_path / "home")
    shard = home / "shard-00000.jsonl"
    record = json.loads(shard.read_text())
    assert "person" not in drawn(home, out=tmp_path / "one.html")
    record["steps"] = [{**step, "by": n % 2} for n, step in enumerate(record["steps"])]
    write_json_lines(shard, [record])
    html = drawn(home, out=tmp_path / "two.html")
    assert re.findall(r">(person \d)</text>", html) == ["person 1", "person 2"]
    assert "1 Walk at mug in the kitchen by person 1. 2 Grab at mug in the kitchen by person 2." in html


def test_a_scene_that_is_gone_leaves_the_list(measured_home: Path, tmp_path: Path):
    home = shutil.copytree(measured_home, tmp_path / "home")
    shard = home / "shard-00000.jsonl"
    record = json.loads(shard.read_text())
    write_json_lines(shard, [record | {"scene": str(tmp_path / "gone.json")}])
    html = drawn(home, out=tmp_path / "page.html")
    assert "The scene cannot be opened" in html
    assert "[PutBack] &lt;mug&gt; (4) &lt;bed&gt; (5)" in html


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing-there"], "no such file or directory"),
        (["."], "holds nothing that can be drawn; looked for comparison.json"),
        (["fisher", "--before", "eval-base"], "holds a Fisher; only a run or an evaluation or a benchmark has them"),
        (["eval-ewc", "--after", "eval-base"], "leave --after out"),
        (["eval-ewc", "--before", "fisher"], "no results.json in it"),
        (["run/adapter"], "holds an adapter; draw the run that made it, e2wm report run"),
        (["broken"], "comparison.json is not as an e2wm command writes it for a comparison"),
        (["eval-ewc", "--examples", "-1"], "--examples -1: must be at least 0"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    words: list[str], said: str, fisher: Path, training: Path, before: Path, after: Path, folder: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(folder)
    write_json(folder / "broken/comparison.json", {"version": 1})
    assert report(*words, "--out", "never.html") == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (folder / "never.html").exists()


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to show the pages in; looked for {', '.join(BROWSERS)}")
    return found


def browse(browser: str, folder: Path, *words: str) -> tuple[str, str]:
    """What the browser prints and logs."""
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# Every page in frames of two widths, as it is; the frames' parent, which has a script, measures what they show.
MEASURE = """
const shown = node => { const b = node.getBoundingClientRect(); return b.width > 0 || b.height > 0; };
addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll('details').forEach(one => one.open = true);
    const charts = [...page.querySelectorAll('figure.chart svg')].map(svg => {
      const box = svg.getBoundingClientRect();
      const texts = [...svg.querySelectorAll('text')].filter(shown);
      const outside = texts.filter(text => {
        const b = text.getBoundingClientRect();
        return b.left < box.left - 3 || b.right > box.right + 3 || b.top < box.top - 3 || b.bottom > box.bottom + 3;
      });
      return {title: svg.querySelector('title').textContent, width: box.width, height: box.height,
              marks: [...svg.querySelectorAll('rect,circle,path,line')].filter(shown).length,
              texts: texts.length, outside: outside.map(text => text.textContent)};
    });
    const blocks = [...page.querySelectorAll('figure,table,dl,h2,p')];
    return {name: frame.dataset.name, window: frame.clientWidth, wide: root.scrollWidth, charts: charts,
            hidden: blocks.filter(node => !shown(node)).map(node => node.outerHTML.slice(0, 80))};
  });
  document.body.dataset.found = JSON.stringify(found);
  console.error('as a check of the log');
});
"""


class Found(HTMLParser):
    """The attribute in which the script leaves what it has measured."""

    found: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self.found = dict(attrs).get("data-found")


@pytest.fixture(scope="module")
def seen(browser: str, pages: dict[str, Path], folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What the browser shows of each page at the widths of a phone and of a desk; and its log."""

    def frames() -> Iterator[str]:
        texts = {name: path.read_text(encoding="utf-8") for name, path in pages.items()}
        texts["too wide"] = '<!DOCTYPE html><p style="width:2000px">text</p><p></p>'
        for name, text in texts.items():
            for width in (390, 1200):
                page = escape(text)
                style = f"width:{width}px;height:800px;border:0"
                yield f'<iframe data-name="{name}" srcdoc="{page}" style="{style}"></iframe>'

    frame = folder / "frames.html"
    script = f"<script>{MEASURE}</script>"
    frame.write_text(f'<!DOCTYPE html><meta charset="utf-8">{script}<body>{"".join(frames())}', encoding="utf-8")
    shown, log = browse(browser, folder, "--window-size=1300,900", "--dump-dom", frame.as_uri())
    parser = Found()
    parser.feed(shown)
    assert parser.found, log
    return json.loads(parser.found), log


CHARTS = {
    "fisher": {"Mean F by layer and module", "Share of F by layer", "Share of F by module"},
    "run": {
        "Task loss", "Penalty", "Gradient norm", "Learning rate", "Skill against general text", "Questions",
        "Answers written freely", "bAbI", "bAbI by task", "General text",
    },
    "evaluation": {
        "Skill against general text", "Questions", "Answers written freely", "bAbI", "bAbI by task", "General text",
    },
    "predictions": set(),
    "experiences": {"Steps by verb", "random (procedural:7)"},
    "floor plan": {"Steps by verb", "drink in bed"},
    "comparison": {
        "Skill against forgetting", "Score of each set", "Forgetting by corpus", "Task loss",
        "Mean F by layer and module", "Share of F by layer",
    },
    "run of a comparison": {"Task loss", "Penalty", "Mean F by layer and module"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_a_browser_shows_each_page_whole(name: str, seen: tuple[list[dict[str, Any]], str]):
    both = [one for one in seen[0] if one["name"] == name]
    assert [one["window"] for one in both] == [390, 1200]
    for one in both:
        assert one["wide"] <= one["window"], "nothing is wider than the screen"
        assert one["hidden"] == []
        titles = [chart["title"] for chart in one["charts"]]
        assert all(any(title.startswith(wanted) for title in titles) for wanted in CHARTS[name]), titles
        for chart in one["charts"]:
            assert 300 < chart["width"] <= one["window"], chart
            assert chart["height"] > 30, chart
            assert chart["marks"] > 2, chart
            assert chart["texts"] > 1, chart
            assert chart["outside"] == [], chart


@pytest.mark.slow
def test_the_browser_has_nothing_to_complain_about(seen: tuple[list[dict[str, Any]], str]):
    said = [line for line in seen[1].splitlines() if "CONSOLE" in line]
    assert len(said) == 1
    assert "as a check of the log" in said[0]


@pytest.mark.slow
def test_the_measure_sees_what_is_wrong(seen: tuple[list[dict[str, Any]], str]):
    wrong = [one for one in seen[0] if one["name"] == "too wide"]
    assert all(one["wide"] > one["window"] for one in wrong)


@pytest.mark.slow
def test_a_screenshot_is_a_picture(browser: str, pages: dict[str, Path], folder: Path):
    picture = folder / "shot.png"
    words = ("--window-size=500,1500", f"--screenshot={picture}", pages["experiences"].as_uri())
    _, log = browse(browser, folder, *words)
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
    rows = pixels(picture.read_bytes())
    assert len(set(rows)) > 30, "filtered bytes of a blank page are all the same"


def pixels(png: bytes) -> bytes:
    """The image data of a PNG, decompressed; its rows still filtered."""
    data, at = b"", 8
    while at < len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return zlib.decompress(data)


def test_pages_fetch_nothing(pages: dict[str, Path]):
    for path in pages.values():
        html = path.read_text(encoding="utf-8")
        assert not re.findall(r'(?:src|srcset|href|action|data)="(?!#)[^"]*"', html)
        assert not re.search(r"<script|url\(|@import|<link|<iframe", html)
        assert "default-src 'none'" in html
