"""The benchmarks of models run, compare like with like, and their two sides compute the same."""

import json

import pytest

from e2wm_jax.bench import generate as generate_bench
from e2wm_jax.bench import models as models_bench
from e2wm_jax.bench.generate import GenerateBenchSettings
from e2wm_jax.bench.harness import best_of
from e2wm_jax.bench.models import SHAPES, SIDES, ModelsBenchSettings
from e2wm_jax.bench.process import Peer
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import FAMILIES


def test_both_sides_read_one_model_and_agree(tiny_llama, torch_oracle):
    """Loss and tokens of the same request to both processes, and the report's arithmetic."""
    model = {"model": str(tiny_llama), "dtype": "float32"}
    ids = [[5, 9, 33, 2, 100, 7, 8, 9], [4, 4, 4, 90, 91, 3, 2, 1]]
    with (
        Peer("ours", model, module=SIDES["ours"]) as ours,
        Peer("transformers", model, module=SIDES["transformers"]) as theirs,
    ):
        for operation in ("forward", "gradient"):
            losses = [peer.ask(operation, ids=ids)["loss"] for peer in (ours, theirs)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        tokens = [peer.ask("generate", prompts=[ids[0], ids[1][:3]], new_tokens=6)["tokens"] for peer in (ours, theirs)]
        assert tokens[0] == tokens[1]
        questions = [["Mary walks", ["kitchen", "kit"]], ["How many apples?", ["1", "13 apples"]]]
        scores = ours.ask("score", questions=questions, batch_size=2)["scores"]
        assert [len(row) for row in scores] == [2, 2]


def test_generation_report_without_transformers(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate_bench, "has_transformers", lambda: False)
    places = ["kitchen", "bedroom", "table", "fridge"]
    lines = [{"input": f"Where is {x}?", "answer": "table", "answer_list": places} for x in ("it", "the apple")]
    (tmp_path / "qa.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = GenerateBenchSettings(
        str(tiny_llama),
        ("float32",),
        prompts=2,
        prompt_tokens=8,
        new_tokens=4,
        data=tmp_path / "qa.json",
        questions=2,
        rounds=1,
    )
    report = json.loads(json.dumps(generate_bench.run(settings)))
    row = report["generation"]["ours float32"]
    assert row["tokens_per_second"] == pytest.approx(8 / row["seconds"], rel=0.05)
    assert row.keys() == {"prefill_seconds", "seconds", "tokens_per_second", "decode_tokens_per_second"}
    assert report["scoring"]["answers"] == 8
    assert report["scoring"]["largest_difference"] < 1e-4
    generate_bench.show(report)
    assert "8 answers of 2 questions" in capsys.readouterr().out


def test_the_best_of_rounds_counts_after_one_that_compiles():
    seconds = iter([9.0, 1.0, 3.0, 2.0, 0.5, 4.0])  # a and b in turn; the first of each compiles

    def measure() -> dict[str, float]:
        return {"seconds": next(seconds)}

    assert [answer["seconds"] for answer in best_of(2, measure, measure)] == [0.5, 2.0]


def test_every_family_has_a_shape_and_wrong_names_are_refused():
    assert {type(config) for config in SHAPES.values()} == FAMILIES.keys()
    with pytest.raises(InputError, match="--families bert: unknown; choose from gpt_neo"):
        models_bench.run(ModelsBenchSettings(families=("bert",)))
    with pytest.raises(InputError, match="--tokens 600: at most 512"):
        models_bench.run(ModelsBenchSettings(tokens=600))
    with pytest.raises(InputError, match="--new-tokens 1: must be at least 2"):
        generate_bench.run(GenerateBenchSettings(new_tokens=1))
