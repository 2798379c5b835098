"""GPT-Neo, GPT-J and OPT against transformers: scores, gradients, generation, names, and what is refused."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Counted, random_torch_model, relative_error

from e2wm_jax import lora
from e2wm_jax.config import MODELS, LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models import decoder, layers
from e2wm_jax.models.weights import Model, config_from_hf, config_to_hf, flatten, load, unflatten

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-4  # of the largest value, in float32
SIZES = {
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 32}
    | {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 32,
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "neo: global, local": ("gpt_neo", {"window_size": 3}),
    "neo: one token in sight, untied, relu": (
        "gpt_neo",
        {
            "hidden_size": 24,
            "num_heads": 3,
            "num_layers": 3,
            "attention_types": [[["local", "global"], 1], [["local"], 1]],
            "window_size": 1,
            "intermediate_size": 20,
            "activation_function": "relu",
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 0.1,
        },
    ),
    "neo: all global, one head, exact gelu": (
        "gpt_neo",
        {"attention_types": [[["global"], 1]], "num_layers": 1, "num_heads": 1, "activation_function": "gelu"},
    ),
    "gptj: half of each head": ("gptj", {"rotary_dim": 8}),
    "gptj: whole heads, tied": (
        "gptj",
        {"n_head": 4, "rotary_dim": 8, "tie_word_embeddings": True, "activation_function": "gelu_pytorch_tanh"},
    ),
    "gptj: three layers, narrow feed-forward": (
        "gptj",
        {"n_embd": 24, "n_head": 1, "n_layer": 3, "rotary_dim": 2, "n_inner": 20, "layer_norm_epsilon": 0.1},
    ),
    "opt: as most": ("opt", {}),
    "opt: post-norm, projections (350m)": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "opt: no last norm, untied, gelu": (
        "opt",
        {
            "num_hidden_layers": 3,
            "_remove_final_layer_norm": True,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
    ),
    "opt: neither biases nor norm weights, wide table": (
        "opt",
        {"enable_bias": False, "layer_norm_elementwise_affine": False, "word_embed_proj_dim": 40},
    ),
    "opt: post-norm without norm weights, untied": (
        "opt",
        {
            "do_layer_norm_before": False,
            "layer_norm_elementwise_affine": False,
            "tie_word_embeddings": False,
            "num_attention_heads": 1,
        },
    ),
}
ONE_OF_EACH = ("neo: global, local", "gptj: half of each head", "opt: post-norm, projections (350m)")
VOCAB, LENGTH = 61, 12

# Three rows of 12 places: padded on the left, padded on the right, whole.
REAL = np.array([[0] * 4 + [1] * 8, [1] * 7 + [0] * 5, [1] * 12])
POSITIONS = np.maximum(np.cumsum(REAL, axis=1) - 1, 0).astype(np.int32)
SEGMENTS = (REAL - 1).astype(np.int32)


def random_ids(*shape: int) -> np.ndarray:
    """Ids from 2 on: torch gives OPT's padding token, 1, no gradient even where it is text."""
    return np.random.default_rng(0).integers(2, VOCAB, shape, dtype=np.int32)


class Case(NamedTuple):
    """A model in torch, its directory, and the model as we load it; leave them as they are."""

    theirs: Any
    folder: Path
    ours: Model


@pytest.fixture(scope="module")
def case(torch_oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """case(name) is the model of that name in `CASES`, made once."""

    @cache
    def make(name: str) -> Case:
        model_type, options = CASES[name]
        tokens = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
        model = random_torch_model(model_type, **{**tokens, **SIZES[model_type], **options})
        folder = tmp_path_factory.mktemp(model_type)
        model.save_pretrained(folder)
        return Case(model, folder, load(str(folder)))

    return make


def torch_scores(model: Any, ids: np.ndarray) -> Any:
    """Scores of `ids` with the mask `REAL`; with `POSITIONS` where transformers does not find them in the mask."""
    own = {} if model.config.model_type == "opt" else {"position_ids": torch.tensor(POSITIONS, dtype=torch.long)}
    return model(torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(REAL), **own).logits


def plain_scores(config: ModelConfig, params: Any, ids: Any, positions: Any, segments: Any) -> jax.Array:
    """Output scores [B, T, V] of every token."""
    return decoder.logits(config, params, decoder.hidden_states(config, params, ids, positions, segments))


scores = jax.jit(plain_scores, static_argnames="config")


@partial(jax.jit, static_argnames=("config", "places"))
def prefill(config: ModelConfig, params: Any, *tokens: Any, places: int) -> tuple[jax.Array, decoder.Cache]:
    """Scores of the first tokens, and a cache for `places` more."""
    hidden, cache = decoder.prefill(config, params, *tokens, places=places)
    return decoder.logits(config, params, hidden), cache


@partial(jax.jit, static_argnames="config")
def extend(config: ModelConfig, params: Any, cache: Any, *tokens: Any) -> tuple[jax.Array, decoder.Cache]:
    """Scores of the next tokens, and the cache with them in it."""
    hidden, cache = decoder.extend(config, params, cache, *tokens)
    return decoder.logits(config, params, hidden), cache


# ------------------------------------------------------------------------------------------- the same as transformers


@pytest.mark.parametrize("name", CASES)
def test_scores_and_gradients_are_those_of_transformers(name: str, case: Callable[[str], Case]) -> None:
    (theirs, _, ours), ids = case(name), random_ids(*REAL.shape)
    predicted = np.logical_and(REAL[:, :-1], REAL[:, 1:])

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = plain_scores(ours.config, params, ids, POSITIONS, SEGMENTS)
        nll = layers.negative_log_likelihood(logits[:, :-1], jnp.asarray(ids[:, 1:]))
        return jnp.sum(jnp.where(predicted, nll, 0)) / predicted.sum(), logits

    (value, logits), gradient = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(ours.params))
    expected = torch_scores(theirs, ids)
    assert relative_error(logits[REAL == 1], expected.detach().numpy()[REAL == 1]) < TOLERANCE

    labels = torch.tensor(np.where(predicted, ids[:, 1:], -100), dtype=torch.long)
    total = torch.nn.functional.cross_entropy(expected[:, :-1].reshape(-1, VOCAB), labels.reshape(-1))
    assert float(value) == pytest.approx(total.item(), rel=1e-5)

    names, parameters = zip(*theirs.named_parameters(), strict=True)
    wanted = dict(zip(names, (part.numpy() for part in torch.autograd.grad(total, parameters)), strict=True))
    largest = max(np.max(np.abs(part)) for part in wanted.values())
    table = decoder.weight_table(ours.config)
    for path, mine in flatten(gradient).items():
        for layer, one in enumerate(mine if table[path].stacked else mine[None]):
            parameter = table[path].hf.format(layer)
            theirs_here = wanted.pop(parameter)
            if np.max(np.abs(theirs_here)) < 1e-6 * largest:  # nothing but rounding, as of a key's bias
                assert np.max(np.abs(one)) < 1e-6 * largest, parameter
            else:
                assert relative_error(one, theirs_here) < TOLERANCE, parameter
    assert not wanted


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_bfloat16_errs_no_more_than_torchs(name: str, case: Callable[[str], Case]) -> None:
    (theirs, _, ours), ids = case(name), random_ids(*REAL.shape)
    with torch.no_grad():
        exact = torch_scores(theirs, ids).numpy()[REAL == 1]
        rounded = torch_scores(deepcopy(theirs).to(torch.bfloat16), ids).float().numpy()[REAL == 1]
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), ours.params)
    mine = np.asarray(scores(ours.config, params, ids, POSITIONS, SEGMENTS))
    assert mine.dtype == jnp.bfloat16
    error = relative_error(mine[REAL == 1], exact)
    assert error < 0.03
    assert error < 1.5 * relative_error(rounded, exact)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_prompts_are_continued_as_in_transformers(name: str, case: Callable[[str], Case]) -> None:
    (theirs, _, ours), prompts, new = case(name), random_ids(3, 6), 6
    real = np.array([[0] * 3 + [1] * 3, [0] + [1] * 5, [1] * 6])
    expected = theirs.generate(
        torch.tensor(prompts, dtype=torch.long),
        attention_mask=torch.tensor(real),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        eos_token_id=None,
        pad_token_id=1,
    ).numpy()

    # The prompts in two pieces, then token by token.
    whole = np.pad(real, ((0, 0), (0, new)), constant_values=1)
    positions, segments = np.maximum(np.cumsum(whole, axis=1) - 1, 0).astype(np.int32), (whole - 1).astype(np.int32)
    ids, pieces = np.pad(prompts, ((0, 0), (0, new))), []
    params = decoder.unstack(jax.device_get(ours.params))
    for start, end in ((0, 3), (3, 6), *((place, place + 1) for place in range(6, ids.shape[1]))):
        piece = ids[:, start:end], positions[:, start:end], segments[:, start:end]
        if start == 0:
            piece_scores, kept = prefill(ours.config, params, *piece, places=ids.shape[1] - end)
        else:
            piece_scores, kept = extend(ours.config, params, kept, *piece)
        pieces.append(np.asarray(piece_scores))
        if 6 <= end < ids.shape[1]:
            ids[:, end] = np.argmax(pieces[-1][:, -1], axis=-1)
    np.testing.assert_array_equal(ids, expected)

    at_once = scores(ours.config, ours.params, ids, positions, segments)
    in_pieces = np.concatenate(pieces, axis=1)
    assert relative_error(in_pieces[whole == 1], np.asarray(at_once)[whole == 1]) < 1e-5


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_packed_documents_do_not_see_each_other(name: str, case: Callable[[str], Case]) -> None:
    ours, ids, lengths = case(name).ours, random_ids(LENGTH), (5, 4, 3)
    starts = np.cumsum((0, *lengths[:-1]))
    alone = np.full((3, LENGTH), 7, np.int32)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        alone[row, :length] = ids[start : start + length]
    segments = np.where(np.arange(LENGTH) < np.array(lengths)[:, None], 0, -1).astype(np.int32)
    order = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
    expected = np.asarray(scores(ours.config, ours.params, alone, order, segments))

    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    packed = (np.tile(row, (3, 1)) for row in (ids, positions, np.repeat(np.int32([1, 2, 3]), lengths)))
    mine = np.asarray(scores(ours.config, ours.params, *packed))[0]
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        assert relative_error(mine[start : start + length], expected[row, :length]) < 1e-5


# --------------------------------------------------------------------------------------------------- names and shapes


@pytest.mark.parametrize("name", CASES)
def test_files_and_trees_hold_the_same_tensors(name: str, case: Callable[[str], Case]) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs, folder, model = case(name)
    tensors = load_file(folder / "model.safetensors")
    table = decoder.weight_table(model.config)
    assert flatten(model.params).keys() == table.keys()
    for path, value in flatten(model.params).items():
        for layer, one in enumerate(np.asarray(value) if table[path].stacked else [value]):
            np.testing.assert_array_equal(one, tensors.pop(table[path].hf.format(layer)), path)
    assert not tensors

    raw = config_to_hf(model.config)
    assert config_from_hf(raw, folder) == model.config
    again = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw), attn_implementation="eager").eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        ids = random_ids(*REAL.shape)
        torch.testing.assert_close(torch_scores(again, ids), torch_scores(theirs, ids), rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_adapters_fit_every_linear_map_of_a_block(name: str, case: Callable[[str], Case]) -> None:
    theirs, config = case(name).theirs, case(name).ours.config
    blocks = {
        module
        for module, kind in theirs.named_modules()
        if isinstance(kind, torch.nn.Linear) and (".h." in module or ".layers." in module)
    }
    assert {module for modules in lora.linear_modules(config).values() for module in modules} == blocks
    assert [target.path for target in lora.adapter_spec(config, LoraConfig())] == ["layers.q", "layers.v"]


OLD_BUFFERS = {
    "gpt_neo": ("transformer.h.0.attn.attention.bias", "transformer.h.1.attn.attention.masked_bias"),
    "gptj": ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"),
    "opt": ("decoder.version", "model.decoder.version"),
}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_old_files_load_with_their_buffers_and_no_others(
    name: str, case: Callable[[str], Case], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    model_type, folder = CASES[name][0], case(name).folder
    file = shutil.copytree(folder, tmp_path / "old") / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: np.ones(3, np.float32) for name in OLD_BUFFERS[model_type]}, file, {"format": "pt"})
    assert load(str(file.parent)).fingerprint == case(name).ours.fingerprint
    save_file(tensors | {"lm_head.scale": np.ones(3, np.float32)}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"unexpected weight lm_head\.scale"):
        load(str(file.parent))


# Biases and norms included; the tables of GPT-J and OPT are larger than their vocabularies.
PARAMETERS = {
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-1.3b": 1_315_575_808,
    "gpt-j-6b": 6_050_882_784,
    "opt-13b": 12_853_473_280,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_the_published_sizes(preset: str) -> None:
    params = jax.eval_shape(partial(decoder.initialize, MODELS[preset]), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[preset]


@pytest.mark.parametrize(("model_type", "preset"), [("gpt_neo", "gpt-neo-1.3b"), ("gptj", "gpt-j-6b")])
def test_presets_are_the_defaults_of_transformers(model_type: str, preset: str) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoConfig

    assert config_from_hf(AutoConfig.for_model(model_type).to_dict(), Path("config.json")) == MODELS[preset]


# -------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize("name", CASES)
def test_a_layer_reads_each_weight_once(name: str, case: Callable[[str], Case]) -> None:
    """Squared gradients are summed per use of a weight; two uses would give them a cross term."""
    model = case(name).ours
    family, config = decoder.family_of(model.config), model.config
    weights = {path: Counted(np.asarray(value)[0]) for path, value in flatten(model.params["layers"]).items()}
    mask = jnp.ones((1, 1, 4, 4), bool)

    def attend(q: Any, k: Any, v: Any, scale: float | None = None) -> tuple[jax.Array, None]:
        return layers.attention(q, k, v, mask, scale), None

    def layer(x: Any) -> Any:
        around = family.context(config, jnp.arange(4)[None])
        return family.layer(config, x, unflatten(weights), around, attend)

    jax.eval_shape(layer, jax.ShapeDtypeStruct((1, 4, config.hidden_size), jnp.float32))
    assert {path: weight.reads for path, weight in weights.items()} == dict.fromkeys(weights, 1)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        (
            "gpt_neo",
            {"activation_function": "swish"},
            r"config\.json: activation_function is 'swish'; supported: 'gelu'",
        ),
        ("gpt_neo", {"attention_types": [[["global", "local"], 12]]}, r"attention_types is .* must give 2 layers"),
        ("gpt_neo", {"attention_layers": ["global", "sparse"]}, r"attention_layers is \['global', 'sparse'\]"),
        ("gpt_neo", {"attention_layers": ["global", "local"], "window_size": 0}, r"window_size is 0"),
        ("gpt_neo", {"attention_types": [["global"]]}, r"config\.json: a value is of the wrong kind"),
        ("gpt_neo", {"num_heads": 5}, r"width 32 is no multiple of the number of heads, 5"),
        ("gptj", {"rotary_dim": None}, r"rotary_dim is None; it must be an even number from 2 to .* 16"),
        ("gptj", {"rotary_dim": 0}, r"rotary_dim is 0"),
        ("gptj", {"rotary_dim": 3}, r"rotary_dim is 3"),
        ("gptj", {"rotary_dim": 18}, r"rotary_dim is 18"),
        ("gptj", {"activation_function": "tanh"}, r"activation_function is 'tanh'"),
        ("gptj", {"n_head": 0}, r"n_head is 0; it must be a whole number from 1"),
        ("opt", {"activation_function": None}, r"activation_function is None"),
        ("opt", {"num_attention_heads": 3}, r"number of heads, 3"),
        ("opt", {"ffn_dim": None}, r"config\.json: ffn_dim is None; it must be a whole number from 1"),
    ],
)
def test_options_without_a_meaning_are_refused(model_type: str, change: dict[str, Any], message: str) -> None:
    raw = {"model_type": model_type, "vocab_size": VOCAB, **SIZES[model_type], **change}
    with pytest.raises(InputError, match=message):
        config_from_hf(raw, Path("config.json"))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox", "opt"])
def test_a_model_that_reads_both_ways_is_refused(model_type: str) -> None:
    """As embedding models of LLaMA's and Qwen's form do: transformers lets them see what comes behind."""
    with pytest.raises(InputError, match=r"is_causal is False; only models that read from left to right"):
        config_from_hf({"model_type": model_type, "is_causal": False}, Path("config.json"))


def test_sizes_that_are_missing_are_refused() -> None:
    for model_type, sizes in SIZES.items():
        raw = {"model_type": model_type, "vocab_size": VOCAB, **sizes}
        config_from_hf(raw, Path("config.json"))
        for key in sizes.keys() - {"rotary_dim"}:
            rest = {name: value for name, value in raw.items() if name != key}
            with pytest.raises(InputError, match=rf"the key '{key}' is missing"):
                config_from_hf(rest, Path("config.json"))


def test_windows_that_a_file_cannot_say_are_refused() -> None:
    config = replace(MODELS["gpt-neo-125m"], windows=(0, 256, 128) * 4)
    with pytest.raises(InputError, match=r"\[128, 256\]"):
        config_to_hf(config)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("neo: global, local", {"tie_word_embeddings": False}, r"lm_head\.weight"),
        (
            "opt: as most",
            {"word_embed_proj_dim": 12},
            r"2 weights are missing, .*decoder\.project_in",
        ),
        ("opt: as most", {"do_layer_norm_before": False}, r"unexpected weight model\.decoder\.final_layer_norm\.bias"),
        ("opt: as most", {"enable_bias": False}, r"unexpected weight model\.decoder\.layers\.0\.fc1\.bias"),
    ],
)
def test_files_that_do_not_fit_their_config_are_refused(
    name: str, change: dict[str, Any], message: str, case: Callable[[str], Case], tmp_path: Path
) -> None:
    path = shutil.copytree(case(name).folder, tmp_path / "other") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        load(str(path.parent))
