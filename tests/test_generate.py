"""Generation against transformers' `generate`, token for token; sampling against exact distributions."""

import itertools
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.config import LlamaConfig
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.texts import continuations as generate_command
from e2wm_jax.evaluate.texts import generation as eval_command
from e2wm_jax.evaluate.texts.continuations import GenerateSettings
from e2wm_jax.evaluate.texts.generation import GenerationSettings, example_scores, list_overlap, summary
from e2wm_jax.models import decoder, spread
from e2wm_jax.models.decoding import beam
from e2wm_jax.models.decoding import generate as generation
from e2wm_jax.models.decoding.generate import Decoding, generate
from e2wm_jax.models.decoding.sampling import Sampling, cut, next_token
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weights import Model, load
from e2wm_jax.sharding import batch_sharding, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAD = 0


@pytest.fixture(scope="module")
def pairs(save_llama, tmp_path_factory) -> list[tuple[Model, Any]]:
    """Random models of few tokens, so that beams meet and ends come: ours and torch's."""
    made = []
    for seed, options in enumerate(
        [{"num_key_value_heads": 1}, {"num_key_value_heads": 4, "tie_word_embeddings": True}]
    ):
        folder = tmp_path_factory.mktemp(f"pair{seed}")
        torch_model = save_llama(
            folder, seed=seed, vocab_size=40, hidden_size=32, max_position_embeddings=96, **options
        )
        model = load(str(folder))
        made.append((model, torch_model))
    return made


def prompts_of(seed: int, number: int = 5, vocabulary: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocabulary, rng.integers(1, 17)).tolist() for _ in range(number)]


def torch_generate(model: Any, prompts: list[list[int]], new: int, ends: list[int], **options: Any) -> list[list[int]]:
    """The new tokens of transformers, batch and left padding and all, without what it fills up with."""
    torch = pytest.importorskip("torch")
    length = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        found = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=PAD,
            eos_token_id=ends or None, **options,
        )  # fmt: skip
    rows = [row[length:].tolist() for row in found]
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), new)] for row in rows]


@pytest.fixture(autouse=True)
def no_default_end(monkeypatch, pairs) -> None:
    for _, torch_model in pairs:
        monkeypatch.setattr(torch_model.generation_config, "eos_token_id", None)


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize(("pair", "seed", "ends"), [(0, 0, [3, 7, 30]), (1, 1, []), (0, 2, [3, 7, 30])])
def test_tokens_equal_transformers_with_unequal_prompts(pairs, num_beams, pair, seed, ends):
    model, theirs = pairs[pair]
    prompts = prompts_of(seed)
    found = generate(model.config, model.params, prompts, Decoding(20, num_beams), ends=ends)
    assert found == torch_generate(theirs, prompts, 20, ends, num_beams=num_beams)
    assert any(len(row) < 20 for row in found) == bool(ends), "no row ended: the test would not see how rows end"


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(2, 0.0), (7, 2.0)])
def test_beams_of_other_widths_and_length_penalties_equal_transformers(pairs, num_beams, length_penalty):
    model, theirs = pairs[0]
    prompts = prompts_of(11, number=4)
    decoding = Decoding(max_new_tokens=12, num_beams=num_beams, length_penalty=length_penalty)
    found = generate(model.config, model.params, prompts, decoding, ends=[7, 9])
    options = {"num_beams": num_beams, "length_penalty": length_penalty}
    assert found == torch_generate(theirs, prompts, 12, [7, 9], **options)


@pytest.mark.parametrize(
    "decoding", [Decoding(9), Decoding(9, num_beams=3), Decoding(9, sampling=Sampling(1.3, 9, 0.8))]
)
def test_a_prompt_continues_alone_as_among_others(pairs, decoding):
    model, _ = pairs[1]
    prompts = prompts_of(5, number=5)
    options = {"ends": [7], "batch_size": 4}
    together = generate(model.config, model.params, prompts, decoding, **options)
    assert generate(model.config, model.params, prompts[:1], decoding, **options) == together[:1]
    shuffled = [prompts[0], *prompts[3:], *prompts[1:3]]
    assert generate(model.config, model.params, shuffled, decoding, **options)[0] == together[0]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_cut_saves_time_and_changes_nothing_before_it(pairs, num_beams):
    model, _ = pairs[0]
    prompts, cuts = prompts_of(3, number=6), list(range(20, 40))
    whole = generate(model.config, model.params, prompts, Decoding(24, num_beams=num_beams), ends=[7])
    stopped = generate(model.config, model.params, prompts, Decoding(24, num_beams=num_beams), ends=[7], cuts=cuts)
    for long, short in zip(whole, stopped, strict=True):
        assert short == long[: next((i + 1 for i, token in enumerate(long) if token in cuts), len(long))]
    assert sum(map(len, stopped)) < sum(map(len, whole))


def test_a_search_whose_beams_agree_up_to_a_cut_stops(pairs, monkeypatch):
    """`limit` is far away; without ends only agreement can stop the loop, so the steps taken are few."""
    model, _ = pairs[0]
    params = decoder.unstack(model.params)
    steps = []
    real = decoder.extend
    monkeypatch.setattr(
        decoder, "extend", lambda *a: (jax.debug.callback(lambda: steps.append(1)), real(*a))[1]
    )  # fmt: skip
    decoding = Decoding(48, num_beams=2)
    generate(model.config, params, prompts_of(3, number=1), decoding, cuts=range(40))
    jax.effects_barrier()
    few = len(steps)
    generate(model.config, params, prompts_of(3, number=1), decoding)
    jax.effects_barrier()
    assert few < 24 < 47 == len(steps) - few


def test_one_compilation_per_bucket_and_none_per_prompt(pairs):
    model, _ = pairs[1]
    params = decoder.unstack(model.params)
    generation.decode.clear_cache()
    beam.beam_search.clear_cache()
    for number, length, new in ((3, 5, 20), (4, 16, 24), (3, 9, 17), (4, 2, 18)):  # 4 rows, 16 places, 24 new
        prompts = [list(range(2, 2 + length))] * number
        generate(model.config, params, prompts, Decoding(new), ends=[number])
        generate(model.config, params, prompts, Decoding(new, num_beams=2, length_penalty=number), ends=[number])
        generate(model.config, params, prompts, Decoding(new, sampling=Sampling(number, top_k=number)), ends=[number])
    assert generation.decode._cache_size() == 2  # greedy and sampled
    assert beam.beam_search._cache_size() == 1
    generate(model.config, params, [[2] * 17] * 3, Decoding(20))
    assert generation.decode._cache_size() == 3


def test_a_step_copies_no_cache(pairs, full_compilation):
    """The loop's temporary memory is the caches it starts from, whatever it writes to them."""
    model, _ = pairs[0]
    params = decoder.unstack(model.params)
    rows, places = 2, 4096
    zeros = jnp.zeros((rows, 16), jnp.int32)

    def temporary(places: int) -> int:
        flags = jnp.zeros(40, bool)
        keys = jax.random.split(jax.random.key(0), rows)
        lowered = generation.decode.lower(
            model.config, params, zeros, zeros, zeros, flags, jnp.int32(places), keys, None, new_tokens=places
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    c = model.config
    cache = 2 * c.num_layers * rows * c.num_kv_heads * c.head_dim * 4  # bytes per place
    assert (temporary(places) - temporary(places // 2)) / (places // 2) < 2.5 * cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extend_equals_the_forward_pass_without_a_cache(pairs, dtype):
    model, _ = pairs[1]
    params = decoder.unstack(jax.tree.map(lambda leaf: leaf.astype(dtype), model.params))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, 12)), jnp.int32)
    segments = jnp.where(jnp.arange(12) < jnp.array([[0], [2], [4]]), -1, 0)
    positions = jnp.maximum(jnp.cumsum(segments == 0, axis=1) - 1, 0)
    read = jax.jit(decoder.hidden_states, static_argnums=0)
    extend = jax.jit(decoder.extend, static_argnums=0)
    prefill = jax.jit(decoder.prefill, static_argnums=0, static_argnames="places")
    whole = read(model.config, params, ids, positions, segments)
    first, cache = prefill(model.config, params, ids[:, :6], positions[:, :6], segments[:, :6], places=6)
    parts = [first]
    for start, stop in ((6, 7), (7, 12)):
        part = slice(start, stop)
        hidden, cache = extend(model.config, params, cache, ids[:, part], positions[:, part], segments[:, part])
        parts.append(hidden)
    real = np.asarray(segments == 0)
    tolerance = 1e-5 if dtype == "float32" else 0.06
    ours, theirs = (np.asarray(x, np.float32)[real] for x in (jnp.concatenate(parts, axis=1), whole))
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    stacked = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
    scanned = np.asarray(read(model.config, stacked, ids, positions, segments), np.float32)
    np.testing.assert_allclose(scanned[real], theirs, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, None, None), (1.0, 5, None), (1.5, None, 0.6), (2.0, 9, 0.8), (1.0, 99, 1.0), (1.0, 1, 1e-6)],
)
def test_distributions_equal_those_of_transformers_warpers(torch_oracle, temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = np.random.default_rng(1).normal(0, 3, (6, 40)).astype(np.float32)
    scores[1, 7], scores[2] = -np.inf, np.linspace(-20, 20, 40)
    theirs = torch_oracle.tensor(scores)
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    for warper in warpers:
        theirs = warper(None, theirs)
    expected = torch_oracle.softmax(theirs, dim=-1).numpy()
    found = jax.nn.softmax(cut(jnp.asarray(scores), Sampling(temperature, top_k, top_p)), axis=-1)
    np.testing.assert_array_equal(np.asarray(found) > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_draws_follow_the_distribution():
    """Pearson's chi-square of 20,000 draws: with 5 degrees of freedom it exceeds 20.5 once in a thousand."""
    scores = jnp.asarray([[0.0, 1.0, -1.0, 2.0, 0.5, -5.0, 1.5, -9.0]], jnp.float32)
    sampling = Sampling(1.3, top_k=7, top_p=0.99)
    shares = np.asarray(jax.nn.softmax(cut(scores, sampling), axis=-1))[0].astype(np.float64)
    number = 20_000
    keys = jax.random.split(jax.random.key(3), number)
    drawn = next_token(jnp.broadcast_to(scores, (number, 8)), keys, jnp.int32(4), sampling)
    counts = np.bincount(np.asarray(drawn), minlength=8)
    kept = shares > 0
    assert kept.sum() == 6
    assert counts[~kept].sum() == 0
    assert np.sum((counts[kept] - number * shares[kept]) ** 2 / (number * shares[kept])) < 20.5


def test_steps_and_seeds_draw_anew(pairs):
    model, _ = pairs[0]
    draws = [
        generate(model.config, model.params, [[5, 6]] * 3, Decoding(16, sampling=Sampling(3.0), seed=seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(row) for row in draws[0]}) == 3
    assert len(set(draws[0][0])) > 4


# --------------------------------------------------------------------------------------------------------------- errors


def test_impossible_requests_are_refused_before_compilation(pairs):
    model, _ = pairs[0]
    before = generation.decode._cache_size()
    for prompts, decoding, message in (
        ([[1], [2] * 80], Decoding(17), r"prompt 2: 80 tokens and --max-new-tokens 17 are more than the model's 96"),
        ([[1], []], Decoding(), "prompt 2: no tokens"),
        ([[1]], Decoding(0), "--max-new-tokens 0: must be at least 1"),
        ([[1]], Decoding(num_beams=11), "--beams 11: at most a quarter of the vocabulary, 10"),
        ([[1]], Decoding(num_beams=2, sampling=Sampling()), "beams are not sampled"),
        ([[1]], Decoding(sampling=Sampling(0.0)), "--temperature 0.0: must be a positive number"),
        ([[1]], Decoding(sampling=Sampling(1e-40)), "--temperature 1e-40: must be a positive number, 1e-30 or more"),
        ([[1]], Decoding(sampling=Sampling(1.0, 0)), "--top-k 0: must be at least 1"),
        ([[1]], Decoding(sampling=Sampling(1.0, None, 1.5)), "--top-p 1.5: must be above 0 and at most 1"),
    ):
        with pytest.raises(InputError, match=message):
            generate(model.config, model.params, prompts, decoding)
    assert generation.decode._cache_size() == before
    assert generate(model.config, model.params, [[2] * 80], Decoding(16))  # exactly full


# ------------------------------------------------------------------------------------------------------------- commands


def test_list_overlap_equals_every_run_tried_out():
    rng = np.random.default_rng(0)

    def brute_force(ours: list[str], theirs: list[str]) -> float:
        runs = [ours[i:j] for i, j in itertools.combinations(range(len(ours) + 1), 2)]
        common = [len(run) for run in runs for k in range(len(theirs)) if theirs[k : k + len(run)] == run]
        return max(common, default=0) / max(len(ours), len(theirs))

    for _ in range(200):
        ours, theirs = ([str(x) for x in rng.integers(0, 3, rng.integers(1, 8))] for _ in range(2))
        assert list_overlap(", ".join(ours), ", ".join(theirs)) == brute_force(ours, theirs)
    assert list_overlap("kitchen, bedroom", "kitchen, bathroom, bedroom") == pytest.approx(1 / 3)
    assert list_overlap("", "kitchen") == 0


def test_rouge_is_stemmed_and_averaged():
    def mean(*pairs: tuple[str, str]) -> dict[str, float]:
        records = [{"prediction": ours, "reference": theirs} for ours, theirs in pairs]
        return summary(example_scores("plan_gen", records))

    # All of the first, nothing of the second.
    scores = mean(("walks to the kitchen", "walk to the kitchen"), ("grab", "sit on the sofa"))
    assert scores == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}
    # One word of two in common: precision 1/2, recall 1/2; no pair of words.
    assert mean(("open fridge", "open door")) == {"rouge1": 0.5, "rouge2": 0.0, "rougeL": 0.5}


@pytest.mark.parametrize("task", ["plan_gen", "obj_move_path"])
def test_eval_generate_writes_what_transformers_writes(tiny_llama, torch_oracle, tmp_path, task):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inputs = ["Mary walks to", "How many apples are there?", "Question: where is the plate"]
    data = tmp_path / f"{task}.json"
    data.write_text("".join(json.dumps({"input": text, "ref": "the kitchen, the table"}) + "\n" for text in inputs))
    out = tmp_path / "predictions.jsonl"
    settings = GenerationSettings(str(tiny_llama), data, beams=3, max_new_tokens=12, predictions=out)
    result = eval_command.run(settings)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    torch_model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch_oracle.float32).eval()
    prompts = tokenizer(inputs, add_special_tokens=False)["input_ids"]
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        (theirs,) = torch_generate(torch_model, [prompt], 12, [1], num_beams=3)
        text = tokenizer.decode(theirs, skip_special_tokens=True).split("\n")[0].strip()
        assert row == {"index": index, "prediction": text, "reference": "the kitchen, the table"}
    if task == "obj_move_path":
        expected = np.mean([list_overlap(row["prediction"], row["reference"]) for row in rows])
        low, high = result.pop("intervals")["lcs"]
        assert low <= result["lcs"] <= high
        assert result == {"task": task, "lcs": pytest.approx(expected), "n": 3}
    else:
        assert result.keys() == {"task", "rouge1", "rouge2", "rougeL", "n", "intervals"}


def test_generate_command_cuts_at_the_stop_and_reads_prompts(tiny_llama, tmp_path):
    (tmp_path / "prompts.txt").write_text("Mary walks to\n\nHow many apples?\n")
    common = {"model": str(tiny_llama), "max_new_tokens": 16}
    result = generate_command.run(GenerateSettings(**common, prompt=("x",), prompts=tmp_path / "prompts.txt"))
    texts = {output["prompt"]: output["text"] for output in result["outputs"]}
    assert list(texts) == ["x", "Mary walks to", "How many apples?"]
    stop = texts["x"][len(texts["x"]) // 2]
    (cut_short,) = generate_command.run(GenerateSettings(**common, prompt=("x",), stop=stop))["outputs"]
    assert cut_short["text"] == texts["x"].split(stop)[0] != texts["x"]
    with pytest.raises(InputError, match="no prompt; give --prompt"):
        generate_command.run(GenerateSettings(**common))
    (tmp_path / "bad.json").write_text('{"input": "a"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match=r"bad.json:2: no text under 'input'"):
        generate_command.run(GenerateSettings(**common, prompts=tmp_path / "bad.json"))


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.slow
@pytest.mark.parametrize(("num_beams", "new"), [(1, 24), (4, 16)])
def test_smollm2_writes_what_transformers_writes(smollm2, smollm2_torch, num_beams, new):
    from e2wm_jax.data.tokenizer import load_tokenizer
    from e2wm_jax.storage.model_files import locate

    tokenizer = load_tokenizer(locate("smollm2-135m"))
    texts = ["How to make coffee? 1. Walk to", "The capital of France is", "Mary goes to the kitchen. She takes the"]
    prompts = tokenizer(texts)["input_ids"]
    end = tokenizer.eos_token_id
    found = generate(smollm2.config, smollm2.params, prompts, Decoding(new, num_beams), ends=[end])
    assert found == torch_generate(smollm2_torch, prompts, new, [end], num_beams=num_beams)


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("beams", [1, 2])
def test_devices_share_the_rows(beams: int) -> None:
    """Eight devices: the same tokens, and each has an eighth of the work."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=64,
        tied=True,
    )
    params = decoder.initialize(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, length).tolist() for length in (3, 9, 5, 7, 4, 6, 8, 2)]
    mesh, decoding = make_mesh("data=8"), Decoding(max_new_tokens=6, num_beams=beams)
    alone = generate(config, params, prompts, decoding)
    assert generate(config, spread.place(config, params, mesh), prompts, decoding, mesh=mesh) == alone

    def flops(params: Params, put: Any) -> float:
        ids = put(np.ones((8, 16), np.int32))
        ends, limit = np.zeros(64, bool), np.int32(6)
        rows = (config, decoder.unstack(params), ids, ids, ids, ends)
        if beams == 1:
            keys = put(jax.random.split(jax.random.key(0), 8))
            lowered = generation.decode.lower(*rows, limit, keys, None, new_tokens=8)
        else:
            prompts, rules = beam.Prompts(ids, ids, ids), beam.Rules(ends, ends, limit, np.float32(1))
            sizes = {"num_beams": beams, "candidates": 2 * beams, "new_tokens": 8}
            lowered = beam.beam_search.lower(*rows[:2], prompts, rules, **sizes)
        return lowered.compile().cost_analysis()["flops"]

    whole, share = flops(params, jnp.asarray), flops(spread.place(config, params, mesh), partial(put_rows, mesh))
    assert share < whole / 7


def put_rows(mesh: Any, x: Any) -> jax.Array:
    return jax.device_put(x, batch_sharding(mesh))
