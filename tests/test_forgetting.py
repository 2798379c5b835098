"""scripts/forgetting.py in its smallest form: what is held is forgotten less, at the same task loss."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def forgetting() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts/forgetting.py"
    spec = importlib.util.spec_from_file_location("forgetting", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["forgetting"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_ewc_l2_kl_and_replay_retain_more_than_none_at_equal_task_loss(forgetting):
    lines: list[str] = []
    found = forgetting.compare(forgetting.SMALL, lines.append)
    base, table = found["base"], found["table"]
    plain = table["none"]
    assert plain["task"] < base["task"] - 1, "the task is to be learned"
    assert plain["forgotten"] > 0.4, "forgetting is to be real"
    for name in ("l2", "ewc", "kl-forward", "replay"):
        assert table[name]["equal_task_loss"], name
        assert table[name]["task"] < plain["task"] + 0.1, name
        assert table[name]["forgotten"] < 0.95 * plain["forgotten"], name
    assert len(lines) == 3 + 1 + 5, "a line each for what was before, none and four regularizers"


def test_a_strength_is_chosen_by_retention_at_the_task_loss_of_none(forgetting):
    def run(task: float, retention: float) -> object:
        return forgetting.Run("x", 1.0, forgetting.Scores(task, retention), forgetting.Scores(0.0, 0.0))

    plain, kept, dear = run(1.0, 3.0), run(1.04, 2.5), run(1.2, 2.0)
    assert forgetting.chosen(plain, [run(1.0, 2.8), kept, dear]) == (kept, True)
    assert forgetting.chosen(plain, [run(2.0, 1.0), dear]) == (dear, False)
