"""LLaMA, Mistral, Qwen2, Qwen3 and GPT-NeoX against transformers: scores, gradients, generation, rotary scaling, names,
and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Counted, random_torch_model, relative_error

from e2wm_jax import lora
from e2wm_jax.config import MODELS, LlamaConfig, LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models import decoder, layers
from e2wm_jax.models.families import rope
from e2wm_jax.models.weights import Model, config_from_hf, config_to_hf, flatten, load, unflatten
from e2wm_jax.storage.adapter_files import read_adapter, write_adapter

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-4  # of the largest value, in float32
VOCAB, LENGTH = 61, 12  # longer than the windows below, and than the trained length of the dynamic cases, 8
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NEOX = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
SIZES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gpt_neox": NEOX}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 50.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0}
# Of four or more frequencies the first is kept, the last divided, and one or more lie on the ramp between.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
    "rope_theta": 1000.0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: linear, biases": ("llama", {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}),
    "llama: dynamic, one key head": (
        "llama",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 8, "num_key_value_heads": 1},
    ),
    "llama: llama3, tied": (
        "llama",
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "num_key_value_heads": 4, "num_hidden_layers": 1},
    ),
    "mistral: window": ("mistral", {"sliding_window": 4, "head_dim": 12}),
    "mistral: no window, tied": (
        "mistral",
        {"sliding_window": None, "tie_word_embeddings": True, "rms_norm_eps": 0.1, "num_hidden_layers": 3},
    ),
    "qwen2: no window": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen2: windows from the second layer on": (
        "qwen2",
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3: norms of heads": ("qwen3", {"head_dim": 10, "rms_norm_eps": 0.1}),
    "qwen3: every other layer a window, biases, llama3": (
        "qwen3",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attention_bias": True,
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
        },
    ),
    "neox: as Pythia": ("gpt_neox", {}),
    "neox: one after the other, no bias, whole heads": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0, "rope_theta": 500.0},
        },
    ),
    "neox: dynamic, tied, three layers": (
        "gpt_neox",
        {
            "rope_parameters": DYNAMIC | {"partial_rotary_factor": 0.5},
            "max_position_embeddings": 8,
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
            "layer_norm_eps": 0.1,
        },
    ),
    "neox: llama3, one head, relu": (
        "gpt_neox",
        {
            "rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5},
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "hidden_act": "relu",
        },
    ),
}
ONE_OF_EACH = (
    "llama: linear, biases",
    "llama: dynamic, one key head",
    "mistral: window",
    "qwen2: windows from the second layer on",
    "qwen3: every other layer a window, biases, llama3",
    "neox: as Pythia",
)
# Here scores alone: what these add to the others has no weights, or weights that others have.
WITHOUT_GRADIENTS = {
    "llama: dynamic, one key head",
    "llama: llama3, tied",
    "mistral: no window, tied",
    "qwen2: no window",
    "qwen3: norms of heads",
    "neox: dynamic, tied, three layers",
    "neox: llama3, one head, relu",
}

# Three rows of 12 places: padded on the left, padded on the right, whole.
REAL = np.array([[0] * 4 + [1] * 8, [1] * 7 + [0] * 5, [1] * 12])
POSITIONS = np.maximum(np.cumsum(REAL, axis=1) - 1, 0).astype(np.int32)
SEGMENTS = (REAL - 1).astype(np.int32)


def random_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, shape, dtype=np.int32)


@pytest.fixture(scope="module")
def save_model(torch_oracle: Any) -> Callable[..., Any]:
    """save_model(folder, name of a case) writes a random model and returns it in torch."""

    def save(folder: Path, name: str) -> Any:
        model_type, options = CASES[name]
        tokens = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        model = random_torch_model(model_type, **{**tokens, **SIZES[model_type], **options})
        model.save_pretrained(folder)
        return model

    return save


def torch_scores(model: Any, ids: np.ndarray) -> Any:
    """Scores of `ids` with the mask `REAL`."""
    where = torch.tensor(POSITIONS, dtype=torch.long)
    return model(torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(REAL), position_ids=where).logits


def forward(config: ModelConfig, params: Any, ids: Any, positions: Any, segments: Any) -> jax.Array:
    """Output scores [B, T, V] of every token."""
    return decoder.logits(config, params, decoder.hidden_states(config, params, ids, positions, segments))


scores = jax.jit(forward, static_argnames="config")
prefill = jax.jit(decoder.prefill, static_argnames=("config", "places"))
extend = jax.jit(decoder.extend, static_argnames="config")


# ------------------------------------------------------------------------------------------- the same as transformers


@pytest.mark.parametrize("name", CASES)
def test_scores_and_gradients_are_those_of_transformers(name: str, save_model: Any, tmp_path: Path) -> None:
    theirs, ids = save_model(tmp_path, name), random_ids(*REAL.shape)
    ours, expected = load(str(tmp_path)), torch_scores(theirs, ids)
    predicted = np.logical_and(REAL[:, :-1], REAL[:, 1:])

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = forward(ours.config, params, ids, POSITIONS, SEGMENTS)
        nll = layers.negative_log_likelihood(logits[:, :-1], jnp.asarray(ids[:, 1:]))
        return jnp.sum(jnp.where(predicted, nll, 0)) / predicted.sum(), logits

    if name in WITHOUT_GRADIENTS:
        logits = scores(ours.config, ours.params, ids, POSITIONS, SEGMENTS)
    else:
        differentiated = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, logits), gradient = differentiated(ours.params)
    assert relative_error(logits[REAL == 1], expected.detach().numpy()[REAL == 1]) < TOLERANCE
    if name in WITHOUT_GRADIENTS:
        return

    labels = torch.tensor(np.where(predicted, ids[:, 1:], -100), dtype=torch.long)
    total = torch.nn.functional.cross_entropy(expected[:, :-1].reshape(-1, VOCAB), labels.reshape(-1))
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)

    wanted, table = dict(theirs.named_parameters()), decoder.weight_table(ours.config)
    for path, mine in flatten(gradient).items():
        for layer, one in enumerate(mine if table[path].stacked else mine[None]):
            parameter = table[path].hf.format(layer).replace("embed_out", "lm_head")  # its name in transformers' memory
            assert relative_error(one, wanted.pop(parameter).grad) < TOLERANCE, parameter
    assert not wanted


@pytest.mark.parametrize("name", ONE_OF_EACH[-2:])
def test_bfloat16_errs_no_more_than_torchs(name: str, save_model: Any, tmp_path: Path) -> None:
    theirs, ids = save_model(tmp_path, name), random_ids(*REAL.shape)
    with torch.no_grad():
        exact = torch_scores(theirs, ids).numpy()[REAL == 1]
        rounded = torch_scores(theirs.to(torch.bfloat16), ids).float().numpy()[REAL == 1]
    ours = load(str(tmp_path), "bfloat16")
    mine = scores(ours.config, ours.params, ids, POSITIONS, SEGMENTS)
    assert mine.dtype == jnp.bfloat16
    error = relative_error(mine.astype(jnp.float32)[REAL == 1], exact)
    assert error < 0.03
    assert error < 1.5 * relative_error(rounded, exact)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_prompts_are_continued_as_in_transformers(name: str, save_model: Any, tmp_path: Path) -> None:
    theirs, prompts, new = save_model(tmp_path, name), random_ids(3, 6), 6
    ours = load(str(tmp_path))
    real = np.array([[0] * 3 + [1] * 3, [0] + [1] * 5, [1] * 6])
    expected = theirs.generate(
        torch.tensor(prompts, dtype=torch.long),
        attention_mask=torch.tensor(real),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )

    # The first half of the prompts, the second half (for one case all of it at once), then token by token.
    whole = np.pad(real, ((0, 0), (0, new)), constant_values=1)
    positions, segments = np.maximum(np.cumsum(whole, axis=1) - 1, 0).astype(np.int32), (whole - 1).astype(np.int32)
    ids, params, start = np.pad(prompts, ((0, 0), (0, new))), decoder.unstack(ours.params), 0
    pieces: list[Any] = []
    for end in (3, 6, *range(7, 13)) if "qwen3" in name else range(3, 13):
        part = (ids[:, start:end], positions[:, start:end], segments[:, start:end])
        if start == 0:
            piece, cache = prefill(ours.config, params, *part, places=ids.shape[1] - end)
        else:
            piece, cache = extend(ours.config, params, cache, *part)
        pieces.append(decoder.logits(ours.config, params, piece))
        if end in range(6, ids.shape[1]):
            ids[:, end] = np.argmax(pieces[-1][:, -1], axis=-1)
        start = end
    np.testing.assert_array_equal(ids, expected.sequences.numpy())
    kept = np.concatenate(pieces, axis=1)
    assert relative_error(kept[:, 5:-1].swapaxes(0, 1), torch.stack(expected.logits)) < TOLERANCE

    # All at once it is the same, unless the frequencies of earlier calls were others: there it must differ.
    at_once = np.asarray(scores(ours.config, ours.params, ids, positions, segments))
    difference = relative_error(kept[whole == 1], at_once[whole == 1])
    assert difference > 1e-2 if "dynamic" in name else difference < 1e-5


def test_packed_documents_do_not_see_each_other_through_a_window(save_model: Any, tmp_path: Path) -> None:
    save_model(tmp_path, "mistral: window")
    ours, ids, lengths = load(str(tmp_path)), random_ids(LENGTH), (2, 7, 3)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    packed = (np.tile(row, (3, 1)) for row in (ids, positions, np.repeat(np.int32([1, 2, 3]), lengths)))
    mine, start = np.asarray(scores(ours.config, ours.params, *packed))[0], 0
    for length in lengths:
        alone = np.zeros((3, LENGTH), np.int32)
        alone[:, :length] = ids[start : start + length]
        segments = np.tile(np.where(np.arange(LENGTH) < length, 0, -1).astype(np.int32), (3, 1))
        order = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
        expected = np.asarray(scores(ours.config, ours.params, alone, order, segments))[0, :length]
        assert relative_error(mine[start : start + length], expected) < 1e-5
        start += length


# ---------------------------------------------------------------------------------------------------- rotary positions

OLD_LLAMA3 = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")}
SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("llama", {}),
    "base at the top": ("llama", {"rope_theta": 777.0}),
    "base in the dictionary first": ("llama", {"rope_theta": 777.0, "rope_parameters": {"rope_theta": 55.0}}),
    "linear, old": ("llama", {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "linear, between": ("llama", {"rope_theta": 777.0, "rope_scaling": {"rope_type": "linear", "factor": 4}}),
    "linear, new": ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 9.0}}),
    "dynamic, within the trained length": ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 4}}),
    "scaling before parameters": (
        "mistral",
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": LLAMA3, "rope_theta": 777.0},
    ),
    "llama3, old": ("llama", {"rope_theta": 777.0, "rope_scaling": {"type": "llama3", **OLD_LLAMA3}}),
    "llama3, length at the top": (
        "llama",
        {"rope_parameters": LLAMA3, "original_max_position_embeddings": 48},
    ),
    "llama3, length left out": (
        "llama",
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}},
    ),
    "llama3, a step for a ramp": ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 3.999}}),
    "neox, nothing": ("gpt_neox", {}),
    "neox, old": ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 123}),
    "neox, old, scaled": (
        "gpt_neox",
        {"rotary_pct": 0.5, "rotary_emb_base": 123, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "neox, new": ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 9.0}}),
    "neox, new before old": (
        "gpt_neox",
        {"rotary_pct": 0.5, "rotary_emb_base": 123, "rope_parameters": {"rope_theta": 9.0}},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_frequencies_of_transformers(name: str, torch_oracle: Any) -> None:
    from transformers import AutoConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model_type, options = SPELLINGS[name]
    raw = {"model_type": model_type, "vocab_size": VOCAB, **SIZES[model_type], **options}
    config: Any = config_from_hf(json.loads(json.dumps(raw)), Path("config.json"))
    theirs = AutoConfig.for_model(**json.loads(json.dumps(raw)))
    embedding = (GPTNeoXRotaryEmbedding if model_type == "gpt_neox" else LlamaRotaryEmbedding)(theirs)
    size = config.rotary_dim if model_type == "gpt_neox" else config.head_dim
    cos, sin = rope.rotary(jnp.ones((1, 1)), size, config.rope_theta, config.rope_scaling, config.max_positions)
    np.testing.assert_allclose(np.arctan2(sin, cos)[0, 0, 0], embedding.inv_freq, rtol=2e-6)
    # What we write says the same, in our words and in theirs.
    again = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(again, Path("config.json")) == config
    np.testing.assert_array_equal(type(embedding)(AutoConfig.for_model(**again)).inv_freq, embedding.inv_freq)


def test_every_partial_rotation_survives_writing() -> None:
    """Readers round rotary_pct * head size down."""
    for head_dim in range(2, 200):
        for rotary_dim in range(2, head_dim + 1, 2):
            config = replace(MODELS["pythia-160m"], hidden_size=12 * head_dim, head_dim=head_dim, rotary_dim=rotary_dim)
            assert config_from_hf(config_to_hf(config), Path("config.json")) == config


# --------------------------------------------------------------------------------------------------- names and shapes


@pytest.mark.parametrize("name", CASES)
def test_files_and_trees_hold_the_same_tensors(name: str, save_model: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = save_model(tmp_path, name)
    tensors, model = load_file(tmp_path / "model.safetensors"), load(str(tmp_path))
    table = decoder.weight_table(model.config)
    assert flatten(model.params).keys() == table.keys()
    for path, value in flatten(model.params).items():
        for layer, one in enumerate(value if table[path].stacked else value[None]):
            np.testing.assert_array_equal(one, tensors.pop(table[path].hf.format(layer)), path)
    assert not tensors

    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/config.json").write_text(json.dumps(config_to_hf(model.config)))
    config = AutoConfig.from_pretrained(tmp_path / "ours")
    assert type(config) is type(theirs.config)
    again = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        ids = random_ids(*REAL.shape)
        torch.testing.assert_close(torch_scores(again, ids), torch_scores(theirs, ids), rtol=0, atol=0)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_default_adapters_are_those_of_peft(name: str, save_model: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(save_model(tmp_path, name), peft.LoraConfig(task_type="CAUSAL_LM")).base_model.model
    config = load(str(tmp_path)).config
    modules, spec = lora.linear_modules(config), lora.adapter_spec(config, LoraConfig())
    assert {module for target in spec for module in modules[target.path]} == {
        module for module, kind in adapted.named_modules() if hasattr(kind, "lora_A")
    }


def test_peft_computes_with_an_adapter_of_the_fused_map_what_we_do(save_model: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs, ids = save_model(tmp_path, "neox: as Pythia"), random_ids(*REAL.shape)
    ours = load(str(tmp_path))
    spec = lora.adapter_spec(ours.config, LoraConfig(rank=3, alpha=6, targets=r".*\.(query_key_value|dense)"))
    shapes = jax.eval_shape(lambda: lora.initialize(ours.config, spec, jax.random.key(0)))
    generator = np.random.default_rng(0)
    adapters = jax.tree.map(lambda factor: 0.3 * jnp.asarray(generator.normal(size=factor.shape), jnp.float32), shapes)
    write_adapter(tmp_path / "adapter", adapters, spec, ours.config, base_model=str(tmp_path), dropout=0.0)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = torch_scores(adapted, ids).numpy()[REAL == 1]
    mine = scores(ours.config, lora.attach(ours.params, adapters, spec), ids, POSITIONS, SEGMENTS)[REAL == 1]
    assert relative_error(mine, expected) < TOLERANCE
    again, read_spec = read_adapter(tmp_path / "adapter", ours.config)
    assert read_spec == spec
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


OLD_BUFFERS = {
    "llama: linear, biases": ("model.layers.1.self_attn.rotary_emb.inv_freq",),
    "neox: as Pythia": (
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq",
    ),
    "qwen2: no window": ("lm_head.weight",),
    "neox: dynamic, tied, three layers": ("embed_out.weight",),
}


@pytest.mark.parametrize("name", OLD_BUFFERS)
def test_old_files_load_with_their_buffers_and_no_others(name: str, save_model: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_model(tmp_path, name)
    file = tmp_path / "model.safetensors"
    tensors, before = load_file(file), load(str(tmp_path)).fingerprint
    table = next(value for key, value in tensors.items() if "embed" in key)
    heads = ("lm_head.weight", "embed_out.weight")  # a tied table under its second name
    extra = {buffer: table.copy() if buffer in heads else np.ones(3, np.float32) for buffer in OLD_BUFFERS[name]}
    save_file(tensors | extra, file, {"format": "pt"})
    assert load(str(tmp_path)).fingerprint == before
    save_file(tensors | {"lm_head.scale": np.ones(3, np.float32)}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"unexpected weight lm_head\.scale"):
        load(str(tmp_path))


PARAMETERS = {
    "mistral-7b": 7_241_732_096,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "pythia-160m": 162_322_944,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_the_published_sizes(preset: str) -> None:
    params = jax.eval_shape(partial(decoder.initialize, MODELS[preset]), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[preset]
    assert config_from_hf(config_to_hf(MODELS[preset]), Path("config.json")) == MODELS[preset]


# -------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize("name", CASES)
def test_a_layer_reads_each_weight_once(name: str, save_model: Any, tmp_path: Path) -> None:
    """Squared gradients are summed per use of a weight; two uses would give them a cross term."""
    save_model(tmp_path, name)
    model: Model = load(str(tmp_path))
    family, config = decoder.family_of(model.config), model.config
    weights = {path: Counted(value[0]) for path, value in flatten(model.params["layers"]).items()}

    def attend(q: Any, k: Any, v: Any, scale: float | None = None) -> tuple[jax.Array, None]:
        return layers.attention(q, k, v, jnp.ones((1, 1, 4, 4), bool), scale), None

    def run(x: jax.Array) -> jax.Array:
        return family.layer(config, x, unflatten(weights), family.context(config, jnp.arange(4)[None]), attend)[0]

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, 4, config.hidden_size), jnp.float32))
    assert {path: weight.reads for path, weight in weights.items()} == dict.fromkeys(weights, 1)


# ----------------------------------------------------------------------------------------------------------- refusals


def scaled(**change: Any) -> dict[str, Any]:
    return {"rope_scaling": LLAMA3 | change}


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            r"rotary scaling 'yarn' is not supported; supported: 'lin",
        ),
        ("mistral", {"rope_parameters": {"rope_type": "longrope"}}, r"rotary scaling 'longrope' is not supported"),
        ("gpt_neox", {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, r"rotary scaling \['linear'\] is not"),
        ("llama", scaled(factor=0.5), r"rotary scaling by the factor 0\.5; it must be at least 1"),
        ("llama", scaled(factor=float("nan")), r"factor is nan; it must be a finite number"),
        ("llama", scaled(factor="two"), r"factor is 'two'; it must be a finite number"),
        ("llama", scaled(low_freq_factor=4), r"low_freq_factor is 4; it must be below high_freq_factor, 4"),
        ("llama", {"rope_scaling": {"type": "linear"}}, r"the key 'factor' is missing"),
        ("llama", {"rope_scaling": "linear"}, r"rotary parameters 'linear' are not one dictionary"),
        ("qwen3", {"rope_parameters": {"full_attention": LLAMA3}}, r"different ones for different kinds of layers"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5; supported in llama: 1"),
        ("llama", {"rope_scaling": DYNAMIC, "head_dim": 2}, r"'dynamic' needs heads of at least 4 dimensions"),
        ("qwen2", {"hidden_act": "gelu"}, r"hidden_act is 'gelu'; supported: 'silu'"),
        ("mistral", {"sliding_window": 0}, r"sliding_window is 0; it must be at least 1"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, r"'full_attention' beside a sliding_window"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, r"there is no sliding_window in use"),
        ("qwen3", {"layer_types": ["full_attention"]}, r"layer_types is \['full_attention'\]; supported: 2 of"),
        ("qwen3", {"layer_types": ["full_attention", "chunked_attention"]}, r"layer_types is .*'chunked_attention'"),
        ("mistral", {"num_key_value_heads": 3}, r"4 heads, 3 key/value heads of size 8: heads must be a multiple"),
        ("gpt_neox", {"num_attention_heads": 3}, r"width 32 is no multiple of the number of heads, 3"),
        ("gpt_neox", {"rotary_pct": 0.2}, r"rotary_pct is 0\.2, so 3 of 16 dimensions of a head are rotated"),
        ("gpt_neox", {"rotary_pct": 1.5}, r"rotary_pct is 1\.5, so 24 of 16"),
        ("gpt_neox", {"rotary_pct": 0}, r"rotary_pct is 0, so 0 of 16"),
        ("gpt_neox", {"hidden_act": "swish"}, r"hidden_act is 'swish'; supported: 'gelu', "),
    ],
)
def test_options_without_a_meaning_are_refused(model_type: str, change: dict[str, Any], message: str) -> None:
    raw = {"model_type": model_type, "vocab_size": VOCAB, **SIZES[model_type], **change}
    with pytest.raises(InputError, match=rf"^config\.json: [^(]*{message}"):
        config_from_hf(raw, Path("config.json"))


def test_models_that_transformers_has_not_are_not_written() -> None:
    tiny = MODELS["tiny"]
    assert isinstance(tiny, LlamaConfig)
    for change in (
        {"windows": (0, 4)},
        {"model_type": "mistral", "windows": (0, 4)},
        {"model_type": "mistral", "attention_bias": True},
        {"model_type": "qwen2", "attention_bias": False},
        {"model_type": "qwen3", "windows": (2, 4)},
        {"model_type": "qwen3", "mlp_bias": True},
    ):
        with pytest.raises(InputError, match=r"no (llama|mistral|qwen2|qwen3) model of transformers has this"):
            config_to_hf(replace(tiny, **change))
