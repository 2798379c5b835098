"""scripts/study.py in its smallest form, on a random model: interrupted, continued, written down."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import study
import study_results

from e2wm_jax.compare import jobs
from e2wm_jax.compare.plan import ComparePlan, make_plan
from e2wm_jax.compare.settings import CompareSettings
from e2wm_jax.storage.files import read_json

pytest.importorskip("virtualhome_eval", reason="needs virtualhome and virtualhome-eval (make setup)")
pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]


@pytest.fixture(scope="module")
def words(save_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model with room for stories of one token per letter or two, the longest of which are left out of training."""
    folder = tmp_path_factory.mktemp("study")
    save_llama(folder / "model", max_position_embeddings=4096)
    size = ["--size", "tiny", "--set", "max_length=700"]
    return [*size, "--model", str(folder / "model"), "--out", str(folder / "out")]


def records(words: list[str]) -> dict[str, Any]:
    out = Path(words[-1])
    return {path.parent.name: read_json(path) for path in sorted(out.glob("*/comparison.json"))}


def test_the_study_stops_and_goes_on(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted in its third run, it does the rest and nothing twice."""
    do, done = jobs.do, []

    def interrupted(plan: Any, job: Any) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(job)
        do(plan, job)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "do", interrupted)
        assert study.main(["--parts", "methods", *words]) == 130
    (methods,) = records(words).values()
    assert [len(arm["runs"]) for arm in methods["arms"]] == [1, 1, 0, 0, 0]
    out = Path(words[-1]) / "methods-own"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert len(before) == 4

    results = tmp_path / "docs/results.md"
    assert study.main(["--parts", "methods", *words, "--results", str(results)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = records(words)
    assert [arm["name"] for arm in found["methods-own"]["arms"]] == ["LoRA", "EWC-LoRA", "L2", "KL", "replay"]
    assert all(len(arm["runs"]) == 1 for arm in found["methods-own"]["arms"])
    check_results(results, Path(words[-1]), found)

    # The plans of its models, in the world.
    assert study.main(["--parts", "plans", *words, "--results", str(results)]) == 0
    scores = read_json(Path(words[-1]) / "plans/plans.json")
    assert list(scores["arms"]) == ["base", "LoRA", "EWC-LoRA", "L2", "KL", "replay"]
    assert scores["references"]["goals_complete"] == 1
    text = results.read_text(encoding="utf-8")
    assert f"| reference | {scores['references']['sentences']} | 0 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in text
    assert f"\n{scores['arms']['KL']['n']} held-out plans" in text


def right_answer(run: Path) -> float:
    """Mean nats of the right answer among the choices of act_recog."""
    lines = (run / "evaluation/predictions/act_recog.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    shares = [math.exp(row["scores"][row["gold"]]) / sum(map(math.exp, row["scores"])) for row in rows]
    return sum(-math.log(share) for share in shares) / len(shares)


def check_results(results: Path, study_out: Path, found: dict[str, Any]) -> None:
    """Every comparison's numbers and pictures are there, and text of one's own stays."""
    text = results.read_text(encoding="utf-8")
    for name, record in found.items():
        assert f"<!-- study {name} -->" in text
        for one in record["trade_off"]:
            assert f"| {one['arm']} | {one['skill']['mean']:.3f}" in text
        base = record["base"]["folder"]
        runs = [arm["runs"][0]["folder"] for arm in record["arms"]]
        changes = [right_answer(study_out / name / run) - right_answer(study_out / name / base) for run in runs]
        (row,) = re.findall(r"\| act_recog, nats \| (.*) \|", text)
        assert [cell.split(" [")[0] for cell in row.split(" | ")] == [f"{change:+.2f}" for change in changes]
        for picture in (f"images/study-{name}.svg", f"images/study-{name}-sets.svg"):
            assert f"({picture})" in text
            assert (results.parent / picture).read_text(encoding="utf-8").startswith("<svg")


def test_a_run_that_failed_is_left_out(words: list[str], tmp_path: Path):
    out = Path(words[-1])
    study_results.write(tmp_path / "whole.md", out, command="again")
    path = out / "methods-own/comparison.json"
    whole = path.read_text(encoding="utf-8")
    record = json.loads(whole)
    failed = {"seed": 1, "folder": "runs/lora/seed-1", "sets": {}, "summary": {}, "seconds": 0.0, "failed": "diverged"}
    record["arms"][0]["runs"].insert(0, failed)
    try:
        path.write_text(json.dumps(record), encoding="utf-8")
        study_results.write(tmp_path / "less.md", out, command="again")
        study.study_plans.carry_out(
            out / "methods-own", next(out.glob("data/*/tasks")), study.sized("tiny", []), out / "plans"
        )
    finally:
        path.write_text(whole, encoding="utf-8")
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("whole.md", "less.md")]
    assert texts[0].replace("| `methods-own` | 5 |", "| `methods-own` | 6 |") == texts[1]


def test_own_words_stay_when_results_are_renewed():
    renewed = study_results.renewed
    text = renewed(renewed("# Results\n\nOurs.\n", "ablation", "1"), "how", "2")
    text = text.replace("<!-- end ablation -->", "<!-- end ablation -->\n\nWhat we think of it.")
    again = renewed(text, "ablation", "3 \\1")
    assert again == text.replace("<!-- study ablation -->\n1\n", "<!-- study ablation -->\n3 \\1\n")


def planned(words: list[str], part: str, folder: Path) -> ComparePlan:
    """The plan of a part, from its file."""
    args = study.parser().parse_args([*words, "--parts", part])
    (text,) = study.configurations(args, study.sized("tiny", [])).values()
    path = folder / f"{part}.toml"
    path.write_text(text)
    return make_plan(CompareSettings(folder / "out", path))


def test_the_ablation_leaves_out_each_task(words: list[str], tmp_path: Path):
    plan = planned(words, "ablation", tmp_path)
    tasks = [[task for task in study.TASKS if f"train_{task}.json" in arm.train["data"]] for arm in plan.arms]
    assert tasks == [list(study.TASKS), *([one for one in study.TASKS if one != task] for task in study.TASKS)]
    assert len({json.dumps({**arm.train, "data": ""}) for arm in plan.arms}) == 1
    assert len(plan.fishers) == 1


def test_estimators_differ_in_their_fisher_only(words: list[str], tmp_path: Path):
    plan = planned(words, "estimators", tmp_path)
    assert len(plan.arms) == 7
    assert len({json.dumps(arm.train) for arm in plan.arms[:6]}) == 1
    assert plan.train_settings(plan.arms[6], 0).fisher_scale == "rowmax127"
    # rowmax127 reads the first arm's F in another way.
    first, *others = plan.fishers.values()
    changed = [{name for name in {**first, **other} if first.get(name) != other.get(name)} for other in others]
    assert changed == [{"labels"}, {"samples"}, {"samples"}, {"dtype"}, {"dtype"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--official", "nowhere"], "has no train/ and eval/"),
        (["--set", "stepz=1"], "there is no stepz"),
        (["--set", "steps=few"], "is no value of TOML"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], change: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert study.main([*words, *change]) == 2
    assert message in capsys.readouterr().err
