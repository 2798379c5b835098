"""`e2wm compare`: dominance by hand, a comparison made, interrupted, resumed and grown, side by side, and refusals."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2wm_jax.cli import main
from e2wm_jax.compare import jobs, workers
from e2wm_jax.compare.arms import Arm, check_names, crossed, read_arms, slug, with_strengths
from e2wm_jax.compare.page import skill_chart, write_page
from e2wm_jax.compare.plan import make_plan
from e2wm_jax.compare.record import claim, read_plan
from e2wm_jax.compare.settings import CompareSettings, read_config
from e2wm_jax.compare.trade_off import trade_off
from e2wm_jax.compare.verdict import for_readers, verdict
from e2wm_jax.config import LoraConfig
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.command.settings import FisherSettings
from e2wm_jax.options.values import build, check_values, merged
from e2wm_jax.storage.files import read_json
from e2wm_jax.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLACES = ("kitchen", "bedroom", "table", "fridge")


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something to learn, and questions on it."""
    folder = tmp_path_factory.mktemp("files")
    facts = [(f"apple {n}", PLACES[n % 4]) for n in range(12)]
    write_lines(folder / "task.json", [{"input": f"Where is {thing}?", "ref": place} for thing, place in facts])
    questions = [{"input": f"Where is {thing}?", "answer": place, "answer_list": PLACES} for thing, place in facts]
    write_lines(folder / "eval/qa/obj_move.json", questions)
    write_lines(folder / "text.jsonl", [{"text": f"The quick brown fox number {n} jumps."} for n in range(6)])
    return folder


@pytest.fixture(scope="module")
def options(tiny_llama: Path, files: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_llama),
        "data": f"1 {files / 'task.json'}",
        "eval": (files / "eval",),
        "text": (str(files / "text.jsonl"),),
        "general_text": (str(files / "text.jsonl"),),
        "regularizers": ("none,l2,ewc",),
        "strengths": ("ewc:1,1e3", "l2:0.01"),
        "steps": 6,
        "lr": 0.02,
        "batch_size": 4,
        "max_length": 32,
    }


def words(options: dict[str, Any], out: Path, **changes: Any) -> list[str]:
    """The command line of these options."""
    found = ["compare", "--out", str(out)]
    for name, value in (options | changes).items():
        flag = f"--{name.replace('_', '-')}"
        if value is not None:
            found += [flag] if value is True else [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return found


@pytest.fixture(scope="module")
def compared(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole comparison."""
    out = tmp_path_factory.mktemp("comparisons") / "whole"
    assert main(words(options, out, seeds="0,1")) == 0
    return out


def numbers(out: Path) -> dict[str, Any]:
    """What a comparison found, but for what it took."""
    record = read_json(out / "comparison.json")
    arms = {arm["name"]: {run["seed"]: run["sets"] for run in arm["runs"]} for arm in record["arms"]}
    return {"base": record["base"]["sets"], "arms": arms, "trade_off": record["trade_off"]}


def test_regularizers_are_crossed_with_strengths():
    arms = crossed(["none,kl,ewc"], ["1,10 ewc:1e4"])
    assert [(arm.name, arm.series, arm.train) for arm in arms] == [
        ("none", "none", {"regularizer": "none"}),
        ("kl-forward 1", "kl-forward", {"regularizer": "kl-forward", "strength": 1.0}),
        ("kl-forward 10", "kl-forward", {"regularizer": "kl-forward", "strength": 10.0}),
        ("ewc", "ewc", {"regularizer": "ewc", "strength": 1e4}),
    ]
    names = [arm.name for arm in with_strengths(Arm("ewc", "ewc", {}), [1e4, 2.5e5, 0.05, 1e-7, 300])]
    assert names == ["ewc 1e4", "ewc 2.5e5", "ewc 0.05", "ewc 1e-7", "ewc 300"]
    assert len({slug(name) for name in names}) == 5


@pytest.mark.parametrize(
    ("regularizers", "strengths", "message"),
    [
        ("none,ewd", "1", "perhaps ewc"),
        ("ewc", "", "none for ewc"),
        ("ewc", "-1", "0 or more"),
        ("ewc", "1,x", "'x' is no number"),
        ("ewc", "l2:1", "--regularizers has no l2"),
    ],
)
def test_crossing_refuses(regularizers: str, strengths: str, message: str):
    with pytest.raises(InputError, match=message):
        crossed([regularizers], [strengths])


def test_settings_are_built_from_tables():
    table = {"model": "m", "data": "d", "out": "o", "lr": 1, "regularizer_data": ["a", "b"], "lora": {"rank": 2}}
    settings = build(TrainSettings, table, "x")
    assert settings == TrainSettings(
        "m", ("d",), Path("o"), lr=1.0, regularizer_data=("a", "b"), lora=LoraConfig(rank=2)
    )
    assert isinstance(settings.lr, float)
    assert merged({"a": 1, "lora": {"rank": 8, "alpha": 2}}, {"lora": {"rank": 1}}) == {
        "a": 1,
        "lora": {"rank": 1, "alpha": 2},
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"strenght": 1}, "perhaps strength"),
        ({"learning_rate": 1}, r"perhaps lr\?"),
        ({"lora": {"ranks": 2}}, "lora: there is no 'ranks'; perhaps rank"),
        ({"lr": "1e-3"}, "lr = '1e-3': must be a number"),
        ({"steps": True}, "steps = True: must be a whole number"),
        ({"optimizer": "adam"}, "choose one of adamw, sgd"),
        ({"regularizer_data": 3}, "must be a list"),
        ({"lora": 3}, "must be a table"),
    ],
)
def test_settings_from_tables_refuse(table: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        build(TrainSettings, {"model": "m", "data": "d", "out": "o", **table}, "file.toml")


def made_up(out: Path, arms: dict[str, list[tuple[list[int], list[float]]]]) -> dict[str, Any]:
    """A record of one QA set and one corpus: per arm and seed right answers (0, 1) and nats of each document."""
    config = {"sets": [{"name": "qa", "kind": "qa"}], "texts": [{"name": "text", "kind": "perplexity"}]}

    def run(folder: str, right: list[int], nats: list[float]) -> dict[str, Any]:
        examples = {
            "qa": {"values": right, "weights": [1.0] * len(right)},
            "text": {"values": nats, "weights": [1.0] * len(nats)},
        }
        (out / folder).mkdir(parents=True)
        (out / folder / "result.json").write_text(json.dumps({"examples": examples}))
        return {
            "folder": folder,
            "sets": {"qa": {"accuracy": float(np.mean(right))}, "text": {"nats": float(np.mean(nats))}},
        }

    runs = {
        name: [run(f"{name}/{seed}", *found) | {"seed": seed} for seed, found in enumerate(seeds)]
        for name, seeds in arms.items()
    }
    base = runs.pop("base")[0]
    return {
        "config": config,
        "base": base,
        "arms": [{"name": name, "series": name, "runs": found} for name, found in runs.items()],
    }


def test_dominance_by_hand(tmp_path: Path):
    """b learns as a does and forgets less; c learns and forgets least of all; d is lucky in one example."""
    half, all_right = [0, 1] * 20, [1] * 40
    one_more = [1, 1, *half[2:]]
    record = made_up(
        tmp_path,
        {
            "base": [(half, [3.0] * 30)],
            "a": [(all_right, [3.5] * 30)],
            "b": [(all_right, [3.2] * 30)],
            "c": [(half, [3.1] * 30)],
            "d": [(one_more, [3.05] * 30)],
        },
    )
    found = {one["arm"]: one for one in trade_off(record, tmp_path)}
    assert {name: one["front"] for name, one in found.items()} == {
        "base": True, "a": False, "b": True, "c": False, "d": True
    }  # fmt: skip
    assert {name: one["dominates"] for name, one in found.items()} == {
        "base": ["c"], "a": [], "b": ["a"], "c": [], "d": ["c"]
    }  # fmt: skip
    # b and a have the same skill, so its difference is 0; d has one example in 40 that may as well not be drawn.
    assert all(one["clearly"] == [] for one in found.values())
    assert found["b"]["skill"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["b"]["forgetting"]["mean"] == pytest.approx(0.2)
    low, high = found["c"]["skill"]["low"], found["c"]["skill"]["high"]
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 40**0.5, abs=0.03)  # the normal approximation of 20 of 40
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 40**0.5, abs=0.03)


def test_a_verdict_says_what_is_more_than_chance(tmp_path: Path):
    """none learns and forgets, ewc learns as much and keeps; l2 is no different from the base."""
    half, all_right = [0, 1] * 20, [1] * 40
    arms = {
        "base": [(half, [3.0] * 30)],
        "none": [(all_right, [3.5] * 30)],
        "ewc": [(all_right, [3.0] * 30)],
        "l2": [([1, 1, *half[2:]], [3.0] * 30)],
    }
    record = made_up(tmp_path, arms)
    record["trade_off"] = trade_off(record, tmp_path)
    found = {one["arm"]: (one["more_skill"], one["less_forgetting"]) for one in record["trade_off"]}
    assert found == {
        "base": ([], ["none"]), "none": (["base", "l2"], []), "ewc": (["base", "l2"], ["none"]), "l2": ([], ["none"])
    }  # fmt: skip
    assert verdict(for_readers(record)["trade_off"]) == [
        "Beyond chance, LoRA forgot some of what the base knows.",
        "Beyond chance, LoRA has more skill than base and l2.",
        "Beyond chance, ewc has more skill than base and l2.",
        "Beyond chance, ewc forgets less than LoRA.",
        "Beyond chance, l2 forgets less than LoRA.",
        "By the means alone, on the Pareto front, so that none is better in both: ewc.",
    ]
    same = made_up(tmp_path / "same", {name: [(half, [3.0] * 30)] for name in ("base", "none", "LoRA")})
    same["trade_off"] = trade_off(same, tmp_path / "same")
    assert verdict(for_readers(same)["trade_off"]) == [
        "No arm differs from another beyond chance: take more examples or seeds before a conclusion.",
        "By the means alone, on the Pareto front, so that none is better in both: base, no regularizer and LoRA.",
    ]


def test_a_verdict_says_where_a_difference_is_certain_and_small(tmp_path: Path):
    half = [0, 1] * 20
    arms = {"base": [(half, [3.5] * 30)], "a": [(half, [3.0] * 30)], "b": [(half, [3.0002] * 30)]}
    said = verdict(trade_off(made_up(tmp_path, arms), tmp_path))
    assert "Beyond chance, a forgets less than base and b (by less than 0.001 nats)." in said


def test_clear_dominance_needs_all_seeds(tmp_path: Path):
    better, worse = [1] * 30 + [0] * 10, [1] * 10 + [0] * 30
    arms = {
        "base": [(worse, [3.0] * 30)],
        "a": [(better, [3.2] * 30), (better, [3.3] * 30)],
        "b": [(worse, [3.6] * 30), (worse, [3.5] * 30)],
    }
    found = {one["arm"]: one for one in trade_off(made_up(tmp_path / "clear", arms), tmp_path / "clear")}
    assert found["a"]["clearly"] == ["b"]
    assert found["a"]["forgetting"] == {
        "mean": pytest.approx(0.25),
        "low": pytest.approx(0.25 - 0.05),  # two seeds: standard deviation 0.1 / sqrt(2), by sqrt(2)
        "high": pytest.approx(0.25 + 0.05),
    }
    arms["b"][1] = (worse, [3.25] * 30)  # with the second seed b forgets less than a
    found = {one["arm"]: one for one in trade_off(made_up(tmp_path / "split", arms), tmp_path / "split")}
    assert found["a"]["dominates"] == ["b"]
    assert found["a"]["clearly"] == []


def test_a_comparison(compared: Path, options: dict[str, Any]):
    found = numbers(compared)
    assert list(found["arms"]) == ["none", "l2", "ewc 1", "ewc 1000"]
    assert all(set(runs) == {0, 1} for runs in found["arms"].values())
    assert [one["arm"] for one in found["trade_off"]] == ["base", "none", "l2", "ewc 1", "ewc 1000"]
    for one in found["trade_off"][1:]:
        nats = [found["arms"][one["arm"]][seed]["text"]["nats"] for seed in (0, 1)]
        assert one["forgetting"]["mean"] == pytest.approx(np.mean(nats) - found["base"]["text"]["nats"], abs=1e-9)
        right = [found["arms"][one["arm"]][seed]["obj_move"]["accuracy"] for seed in (0, 1)]
        assert one["skill"]["mean"] == pytest.approx(np.mean(right))
    plain, held = found["arms"]["none"][0], found["arms"]["ewc 1000"][0]
    assert plain["text"]["nats"] != found["base"]["text"]["nats"], "training changes the model"
    assert abs(held["text"]["nats"] - found["base"]["text"]["nats"]) < abs(
        plain["text"]["nats"] - found["base"]["text"]["nats"]
    )
    assert len(list((compared / "fishers").iterdir())) == 1, "both strengths share one Fisher"
    assert (compared / "runs/ewc-1000/seed-1/adapter/adapter_model.safetensors").is_file()
    assert read_plan(compared).arms[0].train["steps"] == options["steps"]


def test_scores_of_examples_are_those_of_the_set(compared: Path):
    result = read_json(compared / "runs/none/seed-0/result.json")
    for name, metric in (("obj_move", "accuracy"), ("text", "nats")):
        sample = result["examples"][name]
        mean = np.average(sample["values"], weights=sample["weights"])
        assert mean == pytest.approx(result["sets"][name][metric], rel=1e-6)


def test_babi_counts_by_its_mean_and_not_as_skill(tmp_path: Path):
    record = made_up(tmp_path, {"base": [([0, 1], [3.0, 3.1])], "a": [([1, 1], [3.2, 3.3])]})
    record["config"]["sets"].append({"name": "babi", "kind": "babi"})
    for mean, run in ((0.25, record["base"]), (0.75, record["arms"][0]["runs"][0])):
        by_task = {"accuracy": {"1": mean, "2": mean}, "majority": {"1": 0.2, "2": 0.4}, "n": {"1": 5, "2": 6}}
        run["sets"]["babi"] = {**by_task, "mean": mean}
    record["trade_off"] = trade_off(record, tmp_path)
    assert [one["skill"]["mean"] for one in record["trade_off"]] == [0.5, 1.0]
    assert [one["sets"]["babi"]["mean"] for one in record["trade_off"]] == [0.25, 0.75]
    assert "babi: base 0.25, a 0.75, baseline 0.3" in skill_chart(record)


def test_the_page_shows_every_arm_and_set(compared: Path):
    text = (compared / "report.html").read_text(encoding="utf-8")
    for shown in ("Skill against forgetting", "Score of each set", "Forgetting by corpus", "ewc 1000", "obj_move"):
        assert shown in text
    assert "LoRA" in text
    assert "none" not in re.sub(r"(?s)<head>.*?</head>|so that none|<dd>none</dd>|fill: none", "", text)
    assert "What was written" not in text, "no set asks for text"
    assert "<script" not in text
    assert "http://www.w3.org" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_an_interrupted_comparison_goes_on(
    compared: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same numbers; nothing is done twice; further seeds and arms may join, anything else may not change."""
    out, done = tmp_path / "out", []
    do = jobs.do

    def interrupted(plan: Any, job: Any) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(job)
        do(plan, job)

    monkeypatch.setattr(jobs, "do", interrupted)
    first = options | {"regularizers": "none,l2", "strengths": "l2:0.01"}
    assert main(words(first, out, seeds="0,1")) == 130
    assert [job.kind for job in done] == ["base", "run", "run", "run"]
    assert sum(len(arm["runs"]) for arm in read_json(out / "comparison.json")["arms"]) == 3
    write_page(out)  # of what is there

    monkeypatch.setattr(jobs, "do", lambda plan, job: (done.append(job), do(plan, job))[1])
    assert main(words(first, out, seeds="0,1", resume=True)) == 0
    assert len(done) == 5
    whole, resumed = numbers(compared), numbers(out)
    assert resumed["base"] == whole["base"]
    assert resumed["arms"] == {name: whole["arms"][name] for name in ("none", "l2")}

    assert main(words(first, out, seeds="0,1", regularizers="none,l2,replay", strengths="0.01", resume=True)) == 0
    assert [(job.name, job.seed) for job in done[5:]] == [("replay", 0), ("replay", 1)]


@pytest.mark.slow
def test_two_workers_find_the_same(compared: Path, options: dict[str, Any], tmp_path: Path):
    out = tmp_path / "out"
    changes = {"regularizers": "none,l2", "strengths": "l2:0.01", "workers": 2}
    assert main(words(options, out, **changes)) == 0
    found, whole = numbers(out), numbers(compared)
    assert found["base"] == whole["base"]
    assert found["arms"] == {name: {0: whole["arms"][name][0]} for name in ("none", "l2")}


CONFIG = """
eval = ["{eval}"]
text = ["{text}"]
seeds = [0]

[train]
data = "1 {data}"
steps = 2
lora.rank = 4

[fisher]
data = ["{text}"]
max_length = 32

[[arm]]
name = "free"
train.lr = 1e-3

[[arm]]
name = "ewc"
strengths = [1, 10]
train.regularizer = "ewc"
train.lora.alpha = 8

[[arm]]
name = "sampled"
train = {{ regularizer = "ewc", strength = 10 }}
fisher.labels = "sampled"
"""


@pytest.fixture
def config(files: Path, tmp_path: Path) -> Callable[..., Path]:
    """config(old="new") writes the file with these changes."""

    def write(*changes: tuple[str, str]) -> Path:
        text = CONFIG.format(eval=files / "eval", text=files / "text.jsonl", data=files / "task.json")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "compare.toml"
        path.write_text(text)
        return path

    return write


ANSWERS = """
import json, sys
for line in sys.stdin:
    kind, name = json.loads(line)
    if name == "ends":
        sys.exit(3)
    print(json.dumps({"error": "no such arm" if name == "wrong" else None}), flush=True)
"""


def test_jobs_are_done_in_any_worker_and_its_end_is_said() -> None:
    def start() -> "subprocess.Popen[str]":
        words = [sys.executable, "-c", ANSWERS]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    done: list[int] = []
    with start() as first, start() as second:
        workers.do_all([first, second], [("run", str(number)) for number in range(9)], lambda: done.append(1))
        assert len(done) == 9
        with pytest.raises(InputError, match="no such arm"):
            workers.do_all([first, second], [("run", "wrong")], lambda: done.append(1))
        with pytest.raises(InputError, match="a worker process ended with code 3 in run ends; --resume goes on from"):
            workers.do_all([first], [("run", "ends")], lambda: done.append(1))
    assert len(done) == 9


def test_a_file_says_arms_freely(tiny_llama: Path, config: Callable[..., Path], tmp_path: Path):
    plan = make_plan(CompareSettings(tmp_path / "out", config(), str(tiny_llama), steps=3))
    assert [(arm.name, arm.series) for arm in plan.arms] == [
        ("free", "free"), ("ewc 1", "ewc"), ("ewc 10", "ewc"), ("sampled", "sampled")
    ]  # fmt: skip
    assert all(plan.train_settings(arm, 0).steps == 3 for arm in plan.arms), "a flag wins over the file"
    assert plan.train_settings(plan.arms[1], 0).lora == LoraConfig(rank=4, alpha=8.0)
    assert plan.train_settings(plan.arms[0], 0).lr == 1e-3
    labels = [plan.fisher_settings(fisher).labels for fisher in plan.fishers.values()]
    assert labels == ["data", "sampled"]
    claim(plan, resume=False)
    assert read_plan(plan.out) == plan, "worker processes read the same plan"


def test_another_model_of_the_same_size_is_not_gone_on_with(
    save_llama: Callable[..., Any], config: Callable[..., Path], tmp_path: Path
):
    def save(seed: int) -> set[tuple[str, int]]:
        save_llama(tmp_path / "model", seed=seed)
        return {(path.name, path.stat().st_size) for path in (tmp_path / "model").iterdir()}

    settings = CompareSettings(tmp_path / "out", config(), str(tmp_path / "model"), steps=3)
    before = save(0)
    claim(make_plan(settings), resume=False)
    claim(make_plan(settings), resume=True)
    assert save(1) == before
    with pytest.raises(InputError, match="--resume: model has changed since"):
        claim(make_plan(settings), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 2", "stepz = 2"), "perhaps steps"),
        (("seeds = [0]", "sseeds = [0]"), "perhaps seeds"),
        (('name = "sampled"', 'name = "free"'), "arm 'free' stands twice"),
        (('name = "sampled"', 'name = "a/b"'), "a name has letters"),
        (('name = "free"', ""), "arm 1 has no name"),
        (("train.lr = 1e-3", "train.seed = 1"), "seed is what the comparison sets itself"),
        (("train.lr = 1e-3", "fisher.samples = 1"), "reads no Fisher"),
        (("train.lr = 1e-3", "train.lora.targets = 'nothing'"), "arm free"),
        (('labels = "sampled"', 'labels = "drawn"'), "choose one of data, sampled"),
        (("strengths = [1, 10]", "strengths = []"), "must be a list of numbers"),
        (("[train]", "[train"), "not valid TOML"),
        (("task.json", "no.json"), "no such file"),
    ],
)
def test_a_file_is_refused(
    tiny_llama: Path, config: Callable[..., Path], tmp_path: Path, change: tuple[str, str], message: str
):
    with pytest.raises(InputError, match=message):
        make_plan(CompareSettings(tmp_path / "out", config(change), str(tiny_llama)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "--model is missing"),
        ({"eval": ()}, "--eval is missing"),
        ({"eval": (Path("nowhere"),)}, "--eval nowhere: no such file"),
        ({"text": ("nowhere.txt",)}, "--text nowhere.txt: no such file"),
        ({"seeds": ("0,0",)}, "0 stands twice"),
        ({"seeds": ("a",)}, "--seeds a: must be whole numbers"),
        ({"samples": 0}, "--samples 0: must be at least 1"),
        ({"regularizers": (), "strengths": ()}, "nothing to compare"),
        ({"data": None}, "--data is missing"),
        ({"lr": -1.0}, "--lr -1.0"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        make_plan(CompareSettings(tmp_path / "out", **(options | changes)))


def test_folders_without_sets_are_refused(options: dict[str, Any], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to evaluate on"):
        make_plan(CompareSettings(tmp_path / "out", **(options | {"eval": (tmp_path / "empty",)})))


def test_another_comparison_is_not_continued(
    compared: Path, options: dict[str, Any], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "copy"
    shutil.copytree(compared, out)
    for changes, message in (
        ({"resume": None}, "continue it with --resume"),
        ({"steps": 7}, "arm none with train.steps = 6, not 7"),
        ({"seeds": "0"}, "has seed 1, which is missing now"),
        ({"regularizers": "none,ewc", "strengths": "ewc:1,1e3"}, "has arm l2, which is missing now"),
        ({"samples": 3}, "evaluation = samples = None, not 3"),
    ):
        assert main(words(options | {"seeds": "0,1", "resume": True} | changes, out)) == 2
        assert message in capsys.readouterr().err
    record = read_json(out / "comparison.json")
    record["config"]["content"][str(files / "text.jsonl")] = "of another text"
    (out / "comparison.json").write_text(json.dumps(record))
    assert main(words(options | {"seeds": "0,1", "resume": True}, out)) == 2
    assert "text.jsonl has changed since" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- documentation


def test_the_documented_file_makes_the_arms_that_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/compare.md").read_text()
    config = tmp_path / "arms.toml"
    config.write_text(page.partition("```toml\n")[2].partition("```")[0])
    settings, tables = read_config(CompareSettings(tmp_path / "out", config))
    assert (settings.seeds, settings.samples) == (("0", "1"), 64)
    arms = read_arms(tables["arm"], "docs/compare.md")
    assert [arm.name for arm in arms] == [
        "LoRA",
        "EWC-LoRA 1000",
        "EWC-LoRA 1e4",
        "EWC-LoRA, sampled labels",
        "LoRA without plans",
    ]
    check_names(arms)
    for arm in arms:  # every setting is one of the commands' own
        check_values(TrainSettings, {**tables["train"], **arm.train}, arm.name)
        check_values(FisherSettings, {**tables["fisher"], **(arm.fisher or {})}, arm.name)


def test_a_file_may_have_the_names_of_the_field(tmp_path: Path) -> None:
    config = tmp_path / "arms.toml"
    config.write_text(
        "model-name-or-path = 'm'\nlimit = 8\nmax-train-samples = 4\n"
        "[train]\nlearning_rate = 1e-3\nlora-r = 4\n[train.lora]\nlora_alpha = 8\n[fisher]\nmax_seq_length = 32\n"
        "[[arm]]\nname = 'a'\n"
        "train.num_train_epochs = 2\ntrain.regularizer = 'kl'\ntrain.lora.target_modules = 'q_proj'\n"
        "fisher.max-samples = 3\n"
    )
    with pytest.raises(InputError, match="limit and max-train-samples are the same option"):
        read_config(CompareSettings(tmp_path / "out", config))
    config.write_text(config.read_text().replace("max-train-samples = 4\n", ""))
    settings, tables = read_config(CompareSettings(tmp_path / "out", config))
    assert (settings.model, settings.samples) == ("m", 8)
    assert tables["train"] == {"lr": 1e-3, "lora": {"rank": 4, "alpha": 8}}
    assert tables["fisher"] == {"max_length": 32}
    (arm,) = read_arms(tables["arm"], "arms.toml")
    assert arm.train == {"epochs": 2, "regularizer": "kl-forward", "lora": {"targets": "q_proj"}}
    assert arm.fisher == {"samples": 3}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[train]\nwarmup-ratio = 0.1", r"arms\.toml: train: warmup-ratio is a share: give --warmup-steps N"),
        ("[train]\nlr = 1.0\nlearning-rate = 2.0", "train: lr and learning-rate are the same option"),
        ("[[arm]]\nname = 'x'\ntrain.fp16 = true", "arm x: train: fp16 is not offered"),
        ("train = 3", r"train must be a table: \[train\]"),
        ("arm = [3]", r"arms are tables of their own: \[\[arm\]\]"),
        ("[[arm]]\nname = 'x'\nfisher = 3", "arm x: fisher must be a table"),
    ],
)
def test_names_in_a_file_are_refused(table: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "arms.toml"
    config.write_text(table)
    with pytest.raises(InputError, match=message):
        read_config(CompareSettings(tmp_path / "out", config))
