"""The diagonal Fisher against float64 loops over single sequences, its invariances, and its files."""

import itertools
import json
import shutil
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from e2wm_jax.config import LlamaConfig, ModelConfig
from e2wm_jax.data.batch import Batch, Row, collate
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, FisherResult, fisher_diagonal
from e2wm_jax.fisher.files import read_fisher, write_fisher
from e2wm_jax.fisher.run import FisherSettings, run
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, flatten, load

VARIANTS = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
}
LENGTHS = (2, 19, 7, 23, 3, 12, 20, 5)  # padded to 16 and 24: the batches of a run differ in length


def random_rows(vocab_size: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(0, vocab_size, length).astype(np.int32), 1) for length in lengths]


def ours(model: Model, rows: Sequence[Row], *, batch_size: int = 8, **options: Any) -> FisherResult:
    return fisher_diagonal(model.config, model.params, sorted_batches(rows, batch_size, 64), **options)


def by_hf_name(config: ModelConfig, values: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    tensors = {}
    for path, value in values.items():
        spec = weight_table(config)[path]
        layers = np.asarray(value) if spec.stacked else [np.asarray(value)]
        tensors |= {spec.hf.format(layer): tensor for layer, tensor in enumerate(layers)}
    return tensors


def worst_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest over tensors of max |error| / max F."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max() / expected[name].max()) for name in expected)


def torch_fisher(model: Any, rows: Sequence[Row], reduction: str, names: set[str] | None = None) -> dict[str, Any]:
    """Squared gradients of single sequences, one at a time, in float64, averaged."""
    torch = pytest.importorskip("torch")
    model = deepcopy(model).double()
    parameters = {name: p for name, p in model.named_parameters() if names is None or name in names}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for row in rows:
        ids = torch.tensor(row.ids.astype(np.int64))[None]
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction=reduction)
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += gradient**2
    return {name: (value / len(rows)).numpy() for name, value in total.items()}


@pytest.fixture(scope="module")
def variants(save_llama, tmp_path_factory) -> dict[str, tuple[Model, Any]]:
    """Name -> our model and the torch model."""
    made = {}
    for name, config in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        theirs = save_llama(folder, vocab_size=64, **config)
        made[name] = (load(str(folder)), theirs)
    return made


@pytest.fixture(scope="module")
def model(variants) -> Model:
    return variants["tied"][0]


# --------------------------------------------------------------------------------------------------------- exact values


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "reduction"), [*((name, "mean") for name in VARIANTS), ("tied", "sum")])
def test_fisher_equals_a_float64_loop_over_single_sequences(variants, double_norms, variant, reduction):
    model, theirs = variants[variant]
    rows = random_rows(64)
    result = ours(model, rows, estimator=Estimator(reduction=reduction))
    error = worst_error(by_hf_name(model.config, result.values), torch_fisher(theirs, rows, reduction))
    print(f"worst tensor of {variant}, {reduction}: max error / max F = {error:.1e}")
    assert error < 1e-4
    assert result.samples == len(rows)
    assert result.tokens == sum(len(row.ids) - 1 for row in rows)
    assert all(value.dtype == jnp.float32 for value in result.values.values())


@pytest.mark.slow
def test_fisher_of_smollm2_equals_a_float64_loop(smollm2, smollm2_torch, double_norms):
    from e2wm_jax.data.tokenizer import load_tokenizer
    from e2wm_jax.model_files import locate

    texts = [
        "Mary puts the apple on the table and walks to the kitchen.",
        "How many plates are in the sink? Two, I think.",
    ]
    ids = load_tokenizer(locate("smollm2-135m"))(texts)["input_ids"]
    rows = [Row(np.asarray(row, np.int32), 1) for row in ids]
    paths = {
        "layers.q.weight",
        "layers.v.weight",
        "layers.down.weight",
        "layers.mlp_norm.weight",
        "norm.weight",
        "embed.weight",
    }
    result = ours(smollm2, rows, method="scan", select=paths.__contains__)
    found = by_hf_name(smollm2.config, result.values)
    # The whole stacks of q and v; of the large others, three layers are enough.
    found = {
        name: value
        for name, value in found.items()
        if "down_proj" not in name or name.split(".")[2] in ("0", "14", "29")
    }
    expected = torch_fisher(smollm2_torch, rows, "mean", set(found))
    error = worst_error(found, expected)
    print(f"worst tensor of SmolLM2-135M: max error / max F = {error:.1e}")
    assert error < 1e-3


def test_fisher_by_hand_where_the_blocks_do_nothing():
    """With o and down zero, the logits are W h with h the normed embedding: dL/dW = (p - one_hot) h^T."""
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=4,
        intermediate_size=4,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=2,
        max_positions=8,
    )
    params = decoder.initialize(config, jax.random.key(0))
    params["layers"]["o"]["weight"] *= 0
    params["layers"]["down"]["weight"] *= 0
    table, head = (np.asarray(params[name]["weight"], np.float64) * 50 for name in ("embed", "head"))
    params["embed"]["weight"], params["head"]["weight"] = jnp.float32(table), jnp.float32(head)
    pairs = [(0, 3), (4, 1), (2, 2)]
    rows = [Row(np.asarray(pair, np.int32), 1) for pair in pairs]

    expected = np.zeros_like(head)
    for first, second in pairs:
        h = table[first] / np.sqrt(np.mean(table[first] ** 2) + config.norm_eps)
        scores = head @ h
        p = np.exp(scores - scores.max())
        p /= p.sum()
        expected += np.outer(p - np.eye(5)[second], h) ** 2 / len(pairs)

    result = fisher_diagonal(config, params, sorted_batches(rows, 2, 8))
    np.testing.assert_allclose(result.values["head.weight"], expected, rtol=1e-4, atol=1e-7)


def test_a_tied_table_is_one_parameter_with_its_cross_terms(save_llama, double_norms, tmp_path):
    """The square of the sum of both gradients, not the sum of the squares."""
    torch = pytest.importorskip("torch")
    theirs = save_llama(tmp_path / "tied", vocab_size=64, tie_word_embeddings=True)
    separate = save_llama(tmp_path / "separate", vocab_size=64)
    with torch.no_grad():
        for name, parameter in separate.named_parameters():
            parameter.copy_(theirs.get_parameter(name if name != "lm_head.weight" else "model.embed_tokens.weight"))
    separate = separate.double()
    row = random_rows(64, [12])[0]
    ids = torch.tensor(row.ids.astype(np.int64))[None]
    loss = torch.nn.functional.cross_entropy(separate(ids).logits[0, :-1], ids[0, 1:])
    as_table, as_head = torch.autograd.grad(loss, [separate.model.embed_tokens.weight, separate.lm_head.weight])

    found = ours(load(str(tmp_path / "tied")), [row]).values
    assert "head.weight" not in found
    together, apart = ((as_table + as_head) ** 2).numpy(), (as_table**2 + as_head**2).numpy()
    assert np.abs(found["embed.weight"] - together).max() / together.max() < 1e-4
    assert np.abs(found["embed.weight"] - apart).max() / apart.max() > 1e-2


def test_fisher_is_not_the_squared_gradient_of_a_batch(model):
    rows = random_rows(64, [12] * 4)
    fisher = ours(model, rows).values
    batch = collate(rows, length=12, num_targets=11, batch_size=4)

    def mean_loss(params):
        from e2wm_jax.models.likelihood import target_nll

        return jnp.mean(target_nll(model.config, params, batch))

    squared = {path: g**2 for path, g in flatten(jax.grad(mean_loss)(model.params)).items()}
    assert all(float(squared[path].sum()) < 0.6 * float(fisher[path].sum()) for path in fisher)


# ---------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["data", "sampled"])
def test_fisher_does_not_depend_on_batch_size_padding_or_method(model, labels):
    rows = random_rows(64)
    estimator = Estimator(labels=labels, seed=5)
    reference = by_hf_name(model.config, ours(model, rows, batch_size=1, estimator=estimator).values)
    for batch_size, method in ((3, "vmap"), (3, "scan"), (8, "vmap")):
        result = ours(model, rows, batch_size=batch_size, method=method, estimator=estimator)
        assert result.samples == 8
        assert result.tokens == sum(LENGTHS) - len(LENGTHS)
        assert worst_error(by_hf_name(model.config, result.values), reference) < 1e-5, (batch_size, method)


def test_padding_to_any_length_and_empty_rows_change_nothing(model):
    rows = random_rows(64, [9, 5, 12])
    reference = by_hf_name(model.config, ours(model, rows).values)
    padded = collate(rows, length=40, num_targets=20, batch_size=7)
    result = fisher_diagonal(model.config, model.params, [(padded, 3)])
    assert result.samples == 3
    assert worst_error(by_hf_name(model.config, result.values), reference) < 1e-5


def test_fisher_of_some_parameters_is_that_of_all(model):
    rows = random_rows(64)
    everything = ours(model, rows).values
    some = ours(model, rows, select={"layers.v.weight", "norm.weight"}.__contains__).values
    assert some.keys() == {"layers.v.weight", "norm.weight"}
    for path, value in some.items():
        np.testing.assert_allclose(value, everything[path], rtol=1e-5, atol=1e-7 * everything[path].max())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vmap", "scan"])
def test_fisher_is_the_same_on_eight_devices(model, method):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, there are {jax.device_count()}")
    rows = random_rows(64)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over_data = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(model.params, everywhere)

    def spread(batch: Batch) -> Batch:
        return jax.tree.map(lambda x: jax.device_put(x, over_data), batch)

    # Twice the same rows: the sums of the first batch go on in the second.
    batches = [(spread(batch), real) for batch, real in [*sorted_batches(rows, 8, 64)] * 2]
    assert len(batches[0][0].ids.addressable_shards) == 8
    result = fisher_diagonal(model.config, params, batches, method=method)
    reference = by_hf_name(model.config, ours(model, rows, method=method).values)
    assert worst_error(by_hf_name(model.config, result.values), reference) < 1e-5


@pytest.mark.slow
def test_sampled_labels_average_to_the_true_fisher():
    """One sequence many times is many draws; the exact value is the sum over all pairs of labels."""
    draws, vocabulary = 4000, 4
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4,
        intermediate_size=4,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        max_positions=8,
        initializer_range=0.7,
    )
    params = decoder.initialize(config, jax.random.key(3))
    row = Row(np.asarray([1, 3, 0], np.int32), 1)
    batch = collate([row], length=3, num_targets=2, batch_size=1)

    from e2wm_jax.models.likelihood import target_logits

    def loss(params, labels):
        scores = jax.nn.log_softmax(target_logits(config, params, batch)[0])
        return -jnp.mean(scores[jnp.arange(2), labels])

    probabilities = np.asarray(jax.nn.softmax(target_logits(config, params, batch)[0]), np.float64)
    exact, second_moment = ({path: 0.0 for path in flatten(params)} for _ in range(2))
    gradient = jax.jit(jax.grad(loss))
    for labels in itertools.product(range(vocabulary), repeat=2):
        weight = probabilities[0, labels[0]] * probabilities[1, labels[1]]
        for path, g in flatten(gradient(params, jnp.asarray(labels))).items():
            square = np.asarray(g, np.float64) ** 2
            exact[path] += weight * square
            second_moment[path] += weight * square**2

    batches = list(sorted_batches([row] * draws, 1000, 3))
    found = fisher_diagonal(config, params, batches, estimator=Estimator(labels="sampled", seed=1)).values
    other = fisher_diagonal(config, params, batches, estimator=Estimator(labels="sampled", seed=2)).values
    empirical = fisher_diagonal(config, params, batches).values
    for path, value in exact.items():
        deviation = np.sqrt(np.maximum(second_moment[path] - value**2, 0) / draws)
        assert np.all(np.abs(found[path] - value) <= 5 * deviation + 1e-5 * value.max()), path
    assert np.any(found["head.weight"] != other["head.weight"])
    assert np.abs(empirical["head.weight"] - exact["head.weight"]).max() > 0.2 * exact["head.weight"].max()


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "general.txt"
    path.write_text(
        "The quick brown fox jumps over the dog.\n\nMary walks to the fridge.\n\nx\n\nA plate and 27 cats.\n"
    )
    return path


@pytest.fixture(scope="module")
def written(tiny_llama, text_file, tmp_path_factory) -> Path:
    """A Fisher directory of `tiny_llama`, all parameters."""
    out = tmp_path_factory.mktemp("fisher") / "all"
    run(FisherSettings(model=str(tiny_llama), data=(str(text_file),), out=out, max_length=64))
    return out


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Model:
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def made_up(tiny) -> FisherResult:
    """Numbers in the shapes of a Fisher of `tiny`: the files do not ask where they come from."""
    rng = np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.gamma(0.3, size=value.shape), jnp.float32) for path, value in flatten(tiny.params).items()
    }
    return FisherResult(values, samples=8, tokens=83, peak_bytes=0)


def test_files_hold_fisher_under_the_parameters_own_names_and_shapes(written, tiny_llama):
    fisher, weights = load_file(written / "model.safetensors"), load_file(tiny_llama / "model.safetensors")
    assert {name: value.shape for name, value in fisher.items()} == {name: v.shape for name, v in weights.items()}
    assert all(value.dtype == np.float32 and np.all(value >= 0) and value.max() > 0 for value in fisher.values())
    assert sorted(path.name for path in written.iterdir()) == ["config.json", "fisher.json", "model.safetensors"]


def test_transformers_reads_a_fisher_as_the_official_code_does(written):
    transformers = pytest.importorskip("transformers")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    fisher = load_file(written / "model.safetensors")
    for name, parameter in loaded.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), fisher[name])


def test_fisher_json_says_how_it_was_made(written, tiny, text_file):
    import hashlib

    record = json.loads((written / "fisher.json").read_text())
    assert record["fingerprint"] == tiny.fingerprint
    assert record["estimator"]["labels"] == "data"
    assert record["estimator"]["reduction"] == "mean"
    assert (record["samples"], record["max_length"], record["dtype"], record["method"]) == (3, 64, "float32", "vmap")
    assert record["tokens"] > 0
    assert record["version"]
    assert record["data"] == [{"path": str(text_file), "sha256": hashlib.sha256(text_file.read_bytes()).hexdigest()}]


def test_command_reports_what_the_json_line_promises(tiny_llama, text_file, tmp_path):
    options = {"model": str(tiny_llama), "data": (str(text_file),), "params": "lora-targets", "batch_size": 2}
    result = run(FisherSettings(out=tmp_path / "f", samples=2, **options))
    assert {"samples", "tokens", "seconds", "examples_per_second", "method", "peak_bytes"} <= result.keys()
    assert result["samples"] == 2
    assert result["peak_bytes"] > 0


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
    some, everything = load_file(out / "model.safetensors"), load_file(written / "model.safetensors")
    assert {name.split(".")[-2] for name in some} == expected
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
    record = json.loads(path.read_text())
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    }
    path.write_text(json.dumps(record))
    more = run(FisherSettings(out=tmp_path / "b", **options))
    without = run(FisherSettings(out=tmp_path / "c", special_tokens=False, **options))
    assert more["samples"] == 4  # "x" is now two tokens
    assert more["tokens"] == plain["tokens"] + 4
    assert without["tokens"] == plain["tokens"]


ABOUT = {
    "keep": None,
    "estimator": Estimator(),
    "method": "vmap",
    "base_dtype": "float32",
    "max_length": 64,
    "data": [],
}


@pytest.mark.parametrize("shard_bytes", [None, 4096])
def test_what_is_written_is_read_back(tiny, made_up, tmp_path, shard_bytes):
    result = made_up
    write_fisher(tmp_path / "f", tiny, result, **ABOUT, **({"max_shard_bytes": shard_bytes} if shard_bytes else {}))
    shards = sorted(path.name for path in (tmp_path / "f").glob("*.safetensors"))
    if shard_bytes:
        assert len(shards) > 3
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        index = json.loads((tmp_path / "f/model.safetensors.index.json").read_text())
        where = {name: file.name for file in (tmp_path / "f").glob("*.safetensors") for name in load_file(file)}
        assert index["weight_map"] == where
        assert index["metadata"]["total_size"] == sum(4 * value.size for value in result.values.values())
    else:
        assert shards == ["model.safetensors"]
    back = read_fisher(tmp_path / "f", tiny, list(result.values))
    assert back.keys() == result.values.keys()
    for path, value in back.items():
        np.testing.assert_array_equal(value, result.values[path])


def test_sharded_fisher_loads_with_transformers(tiny, made_up, tmp_path):
    transformers = pytest.importorskip("transformers")
    result = made_up
    write_fisher(tmp_path, tiny, result, **ABOUT, max_shard_bytes=4096)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = by_hf_name(tiny.config, result.values)
    for name, parameter in loaded.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), expected[name])


def test_fisher_of_another_model_is_refused(written, save_llama, tmp_path):
    save_llama(tmp_path / "other", seed=9)
    with pytest.raises(InputError, match=r"--fisher .*another model \(fingerprint"):
        read_fisher(written, load(str(tmp_path / "other")), ["layers.q.weight"])


def test_official_form_is_read_with_a_warning_and_checked_by_names_and_shapes(written, tiny, save_llama, tmp_path):
    folder = tmp_path / "official"
    shutil.copytree(written, folder)
    (folder / "fisher.json").unlink()
    needed = ["layers.q.weight", "norm.weight"]
    with pytest.warns(UserWarning, match=r"no fisher\.json: checked by names and shapes only"):
        found = read_fisher(folder, tiny, needed)
    expected = read_fisher(written, tiny, needed)
    for path in needed:
        np.testing.assert_array_equal(found[path], expected[path])

    save_llama(tmp_path / "wide", hidden_size=48)
    with (
        pytest.warns(UserWarning, match="names and shapes only"),
        pytest.raises(InputError, match=r"q_proj\.weight has shape \[32, 32\], this model's is \[48, 48\]"),
    ):
        read_fisher(folder, load(str(tmp_path / "wide")), needed)

    save_llama(tmp_path / "deep", num_hidden_layers=3)
    with (
        pytest.warns(UserWarning, match="names and shapes only"),
        pytest.raises(InputError, match=r"has no model\.layers\.2\.self_attn\.q_proj\.weight"),
    ):
        read_fisher(folder, load(str(tmp_path / "deep")), needed)


def test_a_fisher_that_pytorch_saved_is_read(written, tiny, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = load_file(written / "model.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="names and shapes only"):
        found = read_fisher(tmp_path, tiny, ["layers.q.weight", "norm.weight"])
    np.testing.assert_array_equal(found["norm.weight"], tensors["model.norm.weight"])
    np.testing.assert_array_equal(found["layers.q.weight"][1], tensors["model.layers.1.self_attn.q_proj.weight"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fisher_in_half_precision_is_read_as_float32(written, tiny, tmp_path, dtype):
    tensors = {name: value.astype(jnp.dtype(dtype)) for name, value in load_file(written / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(written / "fisher.json", tmp_path)
    found = read_fisher(tmp_path, tiny, ["layers.q.weight"])["layers.q.weight"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[1], tensors["model.layers.1.self_attn.q_proj.weight"].astype(np.float32))


def test_incomplete_directories_are_refused(written, tiny, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        read_fisher(tmp_path / "nowhere", tiny, ["layers.q.weight"])
    with (
        pytest.warns(UserWarning, match="checked by"),
        pytest.raises(InputError, match=r"no \*\.safetensors and no pytorch_model\.bin in it"),
    ):
        read_fisher(tmp_path, tiny, ["layers.q.weight"])

    tensors = load_file(written / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(written / "fisher.json", tmp_path)
    with pytest.raises(InputError, match=r"has no model\.layers\.1\.self_attn\.q_proj\.weight.*--params"):
        read_fisher(tmp_path, tiny, ["layers.q.weight"])

    whole = (written / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged or incomplete"):
        read_fisher(tmp_path, tiny, ["layers.q.weight"])


def test_reading_warns_of_nothing_when_all_is_well(written, tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_fisher(written, tiny, ["layers.q.weight", "embed.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": "("}, "not a regular expression"),
        ({"params": "nothing"}, "matches no parameter"),
        ({"samples": 0}, "--samples 0: must be at least 1"),
        ({"max_length": 1}, "--max-length 1: must be at least 2"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
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


def test_documents_of_one_token_predict_nothing(tiny_llama, tmp_path):
    (tmp_path / "short.txt").write_text("x\n\ny\n")
    with pytest.raises(InputError, match="no document of two tokens or more"):
        run(FisherSettings(model=str(tiny_llama), data=(str(tmp_path / "short.txt"),), out=tmp_path / "f"))
