"""Embodied Agent Interface: responses that the package's own evaluator reads and scores as one knows by hand."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.benchmarks import embodied_agent
from e2wm_jax.evaluate.benchmarks.embodied_agent import EmbodiedAgentSettings, first_object, run
from e2wm_jax.evaluate.benchmarks.embodied_agent_scores import headline, leaderboard, readable, score
from e2wm_jax.evaluate.texts.continuations import continuations

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("virtualhome_eval"), reason="virtualhome-eval is not installed"),
    pytest.mark.usefixtures("quick_compilation"),
]

# What reaches the goals, of all three kinds, of both programs 1027_2 and 181_1.
SLEEP = {"WALK": ["bed"], "LIE": ["bed"], "SLEEP": []}
SLEEP_GOALS = {
    "node goals": [{"name": "character", "state": "LYING"}],
    "edge goals": [{"from_name": "character", "relation": "ON", "to_name": "bed"}],
    "action goals": [{"action": "SLEEP", "description": "sleep"}],
}


def responses(first: Any, second: Any) -> list[dict[str, str]]:
    texts = [text if isinstance(text, str) else json.dumps(text) for text in (first, second)]
    return [{"identifier": name, "llm_output": text} for name, text in zip(("1027_2", "181_1"), texts, strict=True)]


def test_a_response_ends_where_its_first_object_closes() -> None:
    assert first_object('Sure: {"WALK": ["sink"]} Output:\n{"A": []}') == 'Sure: {"WALK": ["sink"]}'
    assert first_object('{"a": {"b": "}"}, "c": "\\"{"} {') == '{"a": {"b": "}"}, "c": "\\"{"}'
    assert first_object("{'WALK': ['sink']}, and so on}") == "{'WALK': ['sink']}"
    for endless in ("no object", '{"WALK": [', "it's }"):
        assert first_object(endless) == endless


def test_samples_are_spread_over_all_programs() -> None:
    items = [{"identifier": str(i)} for i in range(10)]
    assert [item["identifier"] for item in embodied_agent.spread(items, 3)] == ["0", "3", "6"]
    assert embodied_agent.spread(items, None) == embodied_agent.spread(items, 99) == items


def test_the_package_has_a_prompt_for_every_program() -> None:
    found = embodied_agent.prompts(embodied_agent.package_folder(), "action_sequencing")
    assert len({prompt["identifier"] for prompt in found}) == len(found) == 342
    assert all("Output" in prompt["llm_prompt"] for prompt in found)


def test_the_evaluator_scores_plans_that_are_right_by_hand() -> None:
    whole, why_not = score("action_sequencing", responses(SLEEP, SLEEP))
    assert why_not is None
    assert whole is not None
    assert headline("action_sequencing", whole) == {"task_success_rate": 100.0, "execution_success_rate": 100.0}
    assert whole["goal_evaluation"]["total_goal"] == 100.0
    half, _ = score("action_sequencing", responses(SLEEP, "I would rather not"))
    assert half is not None
    assert headline("action_sequencing", half) == {"task_success_rate": 50.0, "execution_success_rate": 50.0}


def test_the_evaluator_scores_goals_that_are_right_by_hand() -> None:
    whole, _ = score("goal_interpretation", responses(SLEEP_GOALS, {**SLEEP_GOALS, "edge goals": []}))
    assert whole is not None
    assert headline("goal_interpretation", whole) == {"f1": pytest.approx(100 * 10 / 11, abs=1e-3)}  # 5 of 6 goals


MALFORMED = {
    "action_sequencing": ([["WALK", "sink"]], {"WALK": "bed", "LIE": [["bed"]]}, {"walk": ["bed"]}, {"WALK": None}),
    "goal_interpretation": ([SLEEP_GOALS], {**SLEEP_GOALS, "node goals": None}, {"action goals": [{"action": 3}]}),
}


@pytest.mark.parametrize("task", MALFORMED)
def test_a_response_on_which_the_reader_breaks_off_is_written_empty(task: Any, tmp_path: Path) -> None:
    """The others still get their scores."""
    good = SLEEP if task == "action_sequencing" else SLEEP_GOALS
    assert score(task, responses(good, MALFORMED[task][0]))[0] is None
    for number, malformed in enumerate(MALFORMED[task]):
        assert readable(task, json.dumps(malformed)) == "", malformed
        assert readable(task, f"```json{json.dumps(good)}") == f"```json{json.dumps(good)}", number
    (tmp_path / "mine.json").write_text(json.dumps(responses(good, MALFORMED[task][0])))
    result = run(EmbodiedAgentSettings(out=tmp_path / "out", responses=tmp_path / "mine.json", task=task))
    assert (result["n"], result["malformed"]) == (2, 1)
    assert result["scores"] is not None
    assert result["responses"].endswith("responses_outputs.json")
    written = json.loads(Path(result["responses"]).read_text())
    assert written == responses(good, "")
    assert json.loads((tmp_path / f"out/{task}.json").read_text()) == result


def test_why_there_are_no_scores() -> None:
    scores, why_not = score("goal_interpretation", responses("nothing", "nothing"))
    assert scores is None
    assert why_not is not None
    assert "--samples" in why_not


def test_a_model_responds_and_an_interrupted_run_goes_on(
    save_llama: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_llama(tmp_path / "model")
    short = [{"identifier": one["identifier"], "llm_prompt": "Output:"} for one in responses("", "")]
    monkeypatch.setattr(embodied_agent, "prompts", lambda package, task: short)
    settings = EmbodiedAgentSettings(
        out=tmp_path / "out", model=str(tmp_path / "model"), max_new_tokens=4, batch_size=2, name="tiny"
    )
    result = run(settings)
    written = json.loads((tmp_path / "out/responses/action_sequence/tiny_outputs.json").read_text())
    assert [one["identifier"] for one in written] == ["1027_2", "181_1"]
    assert all(one["llm_output"] for one in written)
    assert headline("action_sequencing", result["scores"])["task_success_rate"] == 0
    embodied_agent.show(result)
    shown = capsys.readouterr().out
    assert "tiny (here)" in shown
    assert "Llama3 8B Instruct" in shown

    kept = tmp_path / "out/action_sequencing.predictions.jsonl"
    lines = kept.read_text().splitlines()
    kept.rename(kept.with_name(f"{kept.name}.partial"))
    kept.with_name(f"{kept.name}.partial").write_text(lines[0] + "\n" + lines[1][:10])
    batches = []

    def counted(evaluated: Any, texts: list[str], *arguments: Any, **options: Any) -> list[str]:
        batches.append(len(texts))
        return continuations(evaluated, texts, *arguments, **options)

    monkeypatch.setattr(embodied_agent, "continuations", counted)
    again = run(EmbodiedAgentSettings(**{**vars(settings), "resume": True}))
    assert again == result
    assert batches == [2], "the batch of the one that is missing, whole"
    assert kept.read_text().splitlines() == lines


def test_the_leaderboard_is_the_published_one() -> None:
    """Cells read off the paper's site by hand."""
    assert len(leaderboard("action_sequencing")) == len(leaderboard("goal_interpretation")) == 18
    gpt = {"task_success_rate": 61.6, "execution_success_rate": 71.1}
    assert leaderboard("action_sequencing")["GPT-4o"] == gpt
    assert leaderboard("goal_interpretation")["Cohere Command R+"] == {"f1": 22.4}


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        ({}, "", "either --model M or --responses"),
        ({"responses": "x.json", "samples": 0}, "", "--samples 0"),
        ({"responses": "x.json", "adapter": (Path("a"),)}, "", "--adapter needs --model"),
        ({"responses": "x.json"}, "{", r"x\.json:1: not valid JSON"),
        ({"responses": "x.json"}, "[]", "no responses"),
        ({"responses": "x.json"}, '[{"identifier": "1027_2"}]', "response 0: expected"),
        ({"responses": "x.json"}, '[{"identifier": "7", "llm_output": ""}]', "no program '7'"),
    ],
)
def test_bad_settings_and_responses_are_refused(
    settings: dict[str, Any], text: str, message: str, tmp_path: Path
) -> None:
    if "responses" in settings:
        settings = {**settings, "responses": tmp_path / "x.json"}
        settings["responses"].write_text(text)
    with pytest.raises(InputError, match=message):
        run(EmbodiedAgentSettings(out=tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()
