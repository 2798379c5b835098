"""The code that the documentation shows, run; and its tables against the catalogue."""

import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax import lora
from e2wm_jax.config import MODELS, LoraConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import Loader
from e2wm_jax.lora import Scope
from e2wm_jax.models import decoder
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.train.step import Controls, StepConfig, initial_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]


def blocks(file: str, heading: str) -> list[str]:
    """The Python blocks of a section."""
    text = (ROOT / file).read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of CONTRIBUTING's example, which is now in the catalogue."""
    file, entry, _ = blocks("CONTRIBUTING.md", "A new regularizer")
    path = tmp_path / "depth_l2.py"
    path.write_text(file, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("depth_l2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ((name, regularizer),) = eval(f"{{{entry}}}", vars(module)).items()
    monkeypatch.setitem(REGULARIZERS, name, regularizer)
    return name


def test_the_example_of_a_new_regularizer_trains(example):
    config = MODELS["tiny"]
    spec = lora.adapter_spec(config, LoraConfig(rank=2, alpha=6.0))
    rows = [Row(np.arange(start, start + 12, dtype=np.int32), 4) for start in (5, 40)]
    params = decoder.initialize(config, jax.random.key(0))
    step = StepConfig(Scope(config, spec), example)
    state = initial_state(step, lora.initialize(config, spec, jax.random.key(1)))
    constants, batch = REGULARIZERS[example].prepare(None), Loader(rows, 2, 1, 16, 0).step(1).batch
    penalties = []
    for _ in range(2):
        before = jax.tree.map(jnp.copy, state.adapters)
        state, metrics = train_step(step, state, Controls(0.1, 3.0), params, constants, batch)
        penalties.append(float(metrics["penalty"]))
    names = {"np": np}
    exec(blocks("CONTRIBUTING.md", "A new regularizer")[2], names)
    assert penalties[0] == 0
    assert penalties[1] > 0
    np.testing.assert_allclose(penalties[1], 3.0 * names["by_hand"](before, spec), rtol=1e-5)


def test_swap_in_ten_lines_runs(capsys):
    (code,) = blocks("docs/regularizers.md", "Swap one in ten lines")
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["l2", "row-column", "si"]
    assert all(line.endswith(" 0.0") for line in printed)


def test_every_regularizer_is_documented_with_what_it_reads():
    text = (ROOT / "docs/regularizers.md").read_text(encoding="utf-8")
    formulas, costs = (part.split("\n\n")[0] for part in text.split("| name | ")[1:3])
    for name, regularizer in REGULARIZERS.items():
        assert f"\n| `{name}` |" in formulas, name
        cells = [line.split("|") for line in costs.splitlines()[2:]]
        (reads,) = [what for _, names, what, *_ in cells if f"`{name}`" in names]
        assert ("`--fisher`" in reads) == (regularizer.reads == "fisher"), name
        assert ("text" in reads) == (regularizer.reads == "text"), name
        assert ("in every step" in reads) == (regularizer.token_penalty is not None), name
