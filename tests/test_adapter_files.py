"""PEFT reads what we write, we read what PEFT writes, and what is not plain LoRA is refused by name."""

import copy
import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

from e2wm_jax import lora
from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Adapters, AdapterSpec, TargetSpec
from e2wm_jax.models import decoder
from e2wm_jax.models.weights import Model, load
from e2wm_jax.storage.adapter_config import read_config
from e2wm_jax.storage.adapter_files import read_adapter, write_adapter

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-4  # of the largest value
SHAPE = {"num_hidden_layers": 3, "attention_bias": True, "head_dim": 12}

OURS: dict[str, AdapterSpec] = {
    "plain": (TargetSpec("layers.q", (4, 4, 4), (8.0, 8.0, 8.0)), TargetSpec("layers.v", (4, 4, 4), (8.0, 8.0, 8.0))),
    "rank-stabilized": (TargetSpec("layers.gate", (4, 4, 4), (8.0, 8.0, 8.0), rslora=True),),
    "some layers": (
        TargetSpec("layers.o", (0, 4, 0), (0.0, 8.0, 0.0)),
        TargetSpec("layers.up", (4, 0, 4), (8.0, 0.0, 8.0)),
    ),
    "ranks and scales of their own": (
        TargetSpec("layers.q", (2, 5, 2), (8.0, 8.0, 1.0)),
        TargetSpec("layers.down", (0, 1, 7), (0.0, 3.0, 14.0)),
    ),
}
PEFTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "rank-stabilized, all linear": {"target_modules": "all-linear", "use_rslora": True, "r": 6, "lora_alpha": 3},
    "pattern": {"target_modules": r".*\.[01]\..*(o|gate)_proj"},
    "some layers": {"target_modules": ["up_proj"], "layers_to_transform": [2]},
    "ranks by name": {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 2, r"layers\.1\..*k_proj": 7}},
    "scales by name": {
        "target_modules": ["q_proj", "down_proj"],
        "alpha_pattern": {"1.self_attn.q_proj": 5, "down_proj": 9},
    },
    "ranks and scales by name, rank-stabilized": {
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "rank_pattern": {"v_proj": 3, r"layers\.[02]\..*q_proj": 5},
        "alpha_pattern": {"model.layers.1.self_attn.v_proj": 2.5},
    },
    "gaussian": {"target_modules": ["v_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
}


@partial(jax.jit, static_argnames=("config", "spec"))
def scores(config: ModelConfig, params: Any, adapters: Adapters, spec: AdapterSpec, ids: Any) -> jax.Array:
    """Output scores [B, T, V] with the adapters attached."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    params = lora.attach(params, adapters, spec)
    return decoder.logits(config, params, decoder.hidden_states(config, params, ids, positions, jnp.zeros_like(ids)))


def torch_scores(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


def random_ids(vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (2, 12), dtype=np.int32)


def random_adapters(config: ModelConfig, spec: AdapterSpec) -> Adapters:
    adapters = lora.initialize(config, spec, jax.random.key(1))
    for target in spec:
        b = 0.1 * jax.random.normal(jax.random.key(2), adapters[target.path]["b"].shape)
        used = np.arange(target.rank) < np.asarray(target.ranks)[:, None]
        adapters[target.path]["b"] = b * used[:, None, :]
    return adapters


@pytest.fixture(scope="module")
def base_folder(save_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder, **SHAPE)
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> Model:
    return load(str(base_folder))


@pytest.fixture
def theirs(base_folder: Path) -> Any:
    """A fresh copy: PEFT changes the model it is put on."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base_folder)


@pytest.fixture
def written(base: Model, tmp_path: Path) -> Path:
    """An adapter directory to damage."""
    write(tmp_path, base, OURS["plain"])
    return tmp_path


def write(folder: Path, base: Model, spec: AdapterSpec) -> Adapters:
    adapters = random_adapters(base.config, spec)
    write_adapter(folder, adapters, spec, base.config, base_model="base", dropout=0.1)
    return adapters


def same_adapter(ours: Path, theirs: Path) -> None:
    """The same tensors bit for bit, and the same rank and scale of every module by PEFT's own rules."""
    from safetensors.numpy import load_file

    mine, other = (load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs))
    assert mine.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_array_equal(mine[name], value, err_msg=name)
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in other}
    assert peft_scales(peft.PeftConfig.from_pretrained(ours), modules) == peft_scales(
        peft.PeftConfig.from_pretrained(theirs), modules
    )


def peft_scales(config: Any, modules: set[str]) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each module as PEFT itself finds them, and that it would adapt it."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    found = {}
    for module in modules:
        assert config.target_modules == "all-linear" or check_target_module_exists(config, module)
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
        found[module] = rank, alpha / (rank**0.5 if config.use_rslora else rank)
    return found


# ----------------------------------------------------------------------------------------------------- both directions


@pytest.mark.parametrize("name", OURS)
def test_peft_reads_what_we_write(name: str, base: Model, theirs: Any, tmp_path: Path) -> None:
    spec, ids = OURS[name], random_ids(320)
    adapters = write(tmp_path, base, spec)
    ours = scores(base.config, base.params, adapters, spec, ids)
    assert relative_error(ours, torch_scores(peft.PeftModel.from_pretrained(theirs, tmp_path), ids)) < TOLERANCE
    assert relative_error(ours, scores(base.config, base.params, {}, (), ids)) > 100 * TOLERANCE


@pytest.mark.parametrize("name", PEFTS)
def test_we_read_what_peft_writes(name: str, base: Model, theirs: Any, tmp_path: Path) -> None:
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **PEFTS[name]))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path)
    ids = random_ids(320)
    expected = torch_scores(adapted, ids)
    adapters, spec = read_adapter(tmp_path, base.config)
    assert relative_error(scores(base.config, base.params, adapters, spec, ids), expected) < TOLERANCE
    write_adapter(tmp_path / "again", adapters, spec, base.config, base_model="base", dropout=0.1)
    same_adapter(tmp_path, tmp_path / "again")
    merged = lora.merge(base.params, adapters, spec)
    assert relative_error(scores(base.config, merged, {}, (), ids), expected) < TOLERANCE
    assert relative_error(scores(base.config, base.params, {}, (), ids), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("name", OURS)
def test_reading_back_gives_the_same_bits(name: str, base: Model, tmp_path: Path) -> None:
    adapters = write(tmp_path, base, OURS[name])
    read, spec = read_adapter(tmp_path, base.config)
    assert spec == OURS[name]
    jax.tree.map(np.testing.assert_array_equal, read, adapters)


def test_specifications_survive_the_round_trip(base: Model, tmp_path: Path) -> None:
    spec = lora.adapter_spec(base.config, LoraConfig(rank=3, targets=r".*\.[02]\..*(q|down)_proj", rslora=True))
    write(tmp_path, base, spec)
    assert read_adapter(tmp_path, base.config)[1] == spec


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        ({"targets": "q_proj,up_proj"}, {"target_modules": ["q_proj", "up_proj"]}),
        (
            {"targets": "self_attn.k_proj,layers.1.mlp.up_proj", "rslora": True},
            {"target_modules": ["self_attn.k_proj", "layers.1.mlp.up_proj"], "use_rslora": True},
        ),
        (
            {"targets": r".*\.[02]\..*(q|o)_proj", "rank_pattern": "layers.0.*=5,o_proj=2"},
            {"target_modules": r".*\.[02]\..*(q|o)_proj", "rank_pattern": {"layers.0.*": 5, "o_proj": 2}},
        ),
        (
            {
                "targets": "all-linear",
                "rank_pattern": "o_proj=3,up_proj|q_proj=6",
                "alpha_pattern": "o_proj=2.5",
            },
            {
                "target_modules": "all-linear",
                "rank_pattern": {"o_proj": 3, "up_proj|q_proj": 6},
                "alpha_pattern": {"o_proj": 2.5},
            },
        ),
    ],
)
def test_targets_and_patterns_mean_what_they_mean_to_peft(
    ours: dict[str, Any], options: dict[str, Any], base: Model, theirs: Any
) -> None:
    spec = lora.adapter_spec(base.config, LoraConfig(rank=4, alpha=8, **ours))
    modules = lora.linear_modules(base.config)
    found = {
        modules[target.path][layer]: (rank, float(target.scales[layer]))
        for target in spec
        for layer, rank in enumerate(target.ranks)
        if rank
    }
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **options))
    expected = {
        name.removeprefix("base_model.model."): (
            module.r["default"],
            pytest.approx(module.scaling["default"], rel=1e-6),
        )
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert found == expected


def test_combined_adapters_are_pefts(base: Model, theirs: Any, tmp_path: Path) -> None:
    """PEFT's concatenation of two adapters we wrote, and its sum of both, active at once."""
    names = ("ranks and scales of their own", "plain")
    parts = [(write(tmp_path / name, base, OURS[name]), OURS[name]) for name in names]
    combined, spec = lora.combine(parts, [0.5, 2.0])
    ids = random_ids(320)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / names[0], adapter_name="one")
    adapted.load_adapter(tmp_path / names[1], adapter_name="two")
    both, both_spec = lora.combine(parts)
    adapted.base_model.set_adapter(["one", "two"])
    expected = torch_scores(adapted, ids)
    assert relative_error(scores(base.config, base.params, both, both_spec, ids), expected) < TOLERANCE
    nested = lora.attach(lora.attach(base.params, *parts[0]), *parts[1])
    assert relative_error(scores(base.config, nested, {}, (), ids), expected) < TOLERANCE
    for module in adapted.modules():
        for name, weight in (("one", 0.5), ("two", 2.0)):
            if isinstance(module, peft.tuners.lora.LoraLayer) and name in module.scaling:
                module.set_scale(name, weight)
    expected = torch_scores(adapted, ids)
    assert relative_error(scores(base.config, base.params, combined, spec, ids), expected) < TOLERANCE
    write_adapter(tmp_path / "combined", combined, spec, base.config, base_model="base", dropout=0.0)
    adapted.load_adapter(tmp_path / "combined", adapter_name="combined")
    adapted.set_adapter("combined")
    assert relative_error(torch_scores(adapted, ids), expected) < TOLERANCE


FAMILIES: dict[str, tuple[str, dict[str, int], str, dict[str, Any]]] = {
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
        "layers.qkv",
        {"target_modules": ["query_key_value", "dense"], "rank_pattern": {"layers.0.attention.dense": 2}},
    ),
    "gptj": (
        "GPTJForCausalLM",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
        "layers.up",
        {"target_modules": ["q_proj", "fc_in"], "alpha_pattern": {"h.1.mlp.fc_in": 3}, "use_rslora": True},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_back_for_other_families(family: str, tmp_path: Path) -> None:
    import transformers

    name, sizes, path, options = FAMILIES[family]
    torch.manual_seed(0)
    shape = transformers.AutoConfig.for_model(family, vocab_size=64, **sizes)
    theirs = getattr(transformers, name)(shape).eval()
    theirs.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", r=3, **options))
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path / "peft")
    base, ids = load(str(tmp_path / "base")), random_ids(64)
    adapters, spec = read_adapter(tmp_path / "peft", base.config)
    assert path in adapters
    write_adapter(tmp_path / "ours", adapters, spec, base.config, base_model="base", dropout=0.0)
    same_adapter(tmp_path / "ours", tmp_path / "peft")
    ours = scores(base.config, base.params, adapters, spec, ids)
    assert relative_error(ours, torch_scores(adapted, ids)) < TOLERANCE


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.slow
def test_peft_reads_what_we_write_for_smollm2(smollm2: Model, smollm2_torch: Any, tmp_path: Path) -> None:
    spec = lora.adapter_spec(smollm2.config, LoraConfig(rank=4, targets=r".*\.(q_proj|v_proj|down_proj)"))
    adapters = write(tmp_path, smollm2, spec)
    ids = random_ids(smollm2.config.vocab_size)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(smollm2_torch), tmp_path)  # it freezes what it adapts
    expected = torch_scores(adapted, ids)
    assert relative_error(scores(smollm2.config, smollm2.params, adapters, spec, ids), expected) < TOLERANCE
    assert relative_error(torch_scores(smollm2_torch, ids), expected) > 100 * TOLERANCE


def test_writing_again_replaces_the_adapter_and_leaves_nothing_else(base: Model, tmp_path: Path) -> None:
    write(tmp_path, base, OURS["some layers"])
    write(tmp_path, base, OURS["plain"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert read_adapter(tmp_path, base.config)[1] == OURS["plain"]


@pytest.mark.parametrize("name", ["plain", "some layers"])
def test_write_stopped_before_its_last_file_leaves_a_whole_adapter_or_none(
    name: str, base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights are whole with the configuration that is there; those of another kind wait for their own."""

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    write(tmp_path, base, OURS["plain"])
    (tmp_path / ".adapter_model.safetensors.0123abcd").write_bytes(b"of a write that was killed")
    newer = jax.tree.map(lambda value: value + 1, random_adapters(base.config, OURS[name]))
    monkeypatch.setattr("e2wm_jax.storage.adapter_files.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(tmp_path, newer, OURS[name], base.config, base_model="base", dropout=0.1)
    if name == "plain":
        jax.tree.map(np.testing.assert_array_equal, read_adapter(tmp_path, base.config)[0], newer)
    else:
        with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
            read_adapter(tmp_path, base.config)
    assert len(list(tmp_path.iterdir())) == (2 if name == "plain" else 1)


# ----------------------------------------------------------------------------------------------------- what is refused


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' also changes the base weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' also changes"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication = .* is not supported"),
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices = \[3\] is not supported"),
        ({"target_parameters": ["mlp.experts.up"]}, "target_parameters = .* is not supported"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens = .* is not supported"),
        ({"something_new": 1}, "something_new = 1 is not supported"),
        ({"r": 5}, "says rank 5 for .*, but its A is"),
    ],
)
def test_other_kinds_of_adapters_are_refused(changes: dict[str, Any], message: str, written: Path, base: Model) -> None:
    edit(written, **changes)
    with pytest.raises(InputError, match=rf"adapter_config\.json: {message}"):
        read_adapter(written, base.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r is 0; a rank must be a whole number, 1 or more"),
        ({"r": "4"}, "r is '4'; a rank must be"),
        ({"r": True}, "r is True; a rank must be"),
        ({"rank_pattern": {"q_proj": None}}, "rank_pattern is None; a rank must be"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\]; it must map names"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, "rank_pattern holds no regular expression"),
        ({"alpha_pattern": {"*": 4}}, "alpha_pattern holds no regular expression"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is '8'; it must be a finite number"),
        ({"lora_alpha": None}, "lora_alpha is None; it must be a finite number"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf; it must be a finite number"),
        ({"lora_alpha": 1e39}, r"lora_alpha is 1e\+39; it must be a finite number, in float32 too"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000.*; it must be a finite number"),
        ({"use_rslora": "false"}, "use_rslora is 'false'; it must be true or false"),
        ({"target_modules": "("}, r"target_modules holds no regular expression: '\('"),
        ({"target_modules": [1]}, r"target_modules is \[1\]; it must be a list of names"),
        ({"target_modules": {"q_proj": 1}}, "target_modules is {.*}; it must be a list of names"),
        ({"exclude_modules": 3}, "exclude_modules is 3; it must be a list of names"),
        ({"layers_to_transform": "1"}, "layers_to_transform is '1' and layers_pattern"),
        ({"layers_pattern": "layers"}, "layers_to_transform is None and layers_pattern 'layers'"),
        ({"layers_to_transform": 1, "target_modules": ".*q_proj"}, "layers_to_transform is 1 and layers_pattern"),
        ({"layers_to_transform": [1], "layers_pattern": [2]}, r"layers_pattern is \[2\]; it must be text"),
        ({"layers_to_transform": [1], "layers_pattern": ["["]}, "layers_pattern holds no regular expression"),
    ],
)
def test_values_of_another_kind_are_refused(changes: dict[str, Any], message: str, written: Path, base: Model) -> None:
    edit(written, **changes)
    with pytest.raises(InputError, match=rf"adapter_config\.json: {message}"):
        read_adapter(written, base.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj"]}, "does not adapt model.layers.0.self_attn.v_proj, and PEFT leaves"),
        ({"exclude_modules": ["v_proj"]}, "does not adapt model.layers.0.self_attn.v_proj, and PEFT leaves"),
        ({"layers_to_transform": [0, 2]}, "does not adapt model.layers.1.self_attn.q_proj, and PEFT leaves"),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, "adapts model.layers.0.mlp.up_proj, and its weights"),
        ({"target_modules": "all-linear"}, "adapts model.layers.0.mlp.down_proj, and its weights are not here"),
        ({"target_modules": ["nothing"]}, "does not adapt model.layers.0.self_attn.q_proj, and PEFT leaves"),
    ],
)
def test_weights_of_other_modules_than_the_configuration_names(
    changes: dict[str, Any], message: str, written: Path, base: Model
) -> None:
    edit(written, **changes)
    with pytest.raises(InputError, match=rf"adapter_model\.safetensors: adapter_config\.json {re.escape(message)}"):
        read_adapter(written, base.config)


TARGETS: list[dict[str, Any]] = [
    {"target_modules": None},
    {"target_modules": ["q_proj", "layers.1.mlp.up_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    {"target_modules": r".*\.[02]\..*_proj", "exclude_modules": r".*mlp.*"},
    {"target_modules": ["gate_proj", "proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": "ALL-linear"},
]


@pytest.mark.parametrize("options", TARGETS)
def test_modules_are_those_that_peft_adapts(options: dict[str, Any], base: Model, theirs: Any, tmp_path: Path) -> None:
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    expected = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **options}))
    said = read_config(tmp_path / "adapter_config.json")
    names = [name for names in lora.linear_modules(base.config).values() for name in names]
    assert {name for name in names if said.targets(name)} == expected


def test_an_adapter_of_old_peft(base: Model, tmp_path: Path) -> None:
    """adapter_model.bin alone, which PEFT reads too; beside adapter_model.safetensors it is left alone."""
    from safetensors.torch import load_file

    adapters = write(tmp_path, base, OURS["plain"])
    tensors = {name: value.half() for name, value in load_file(tmp_path / "adapter_model.safetensors").items()}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    jax.tree.map(np.testing.assert_array_equal, read_adapter(tmp_path, base.config)[0], adapters)
    (tmp_path / "adapter_model.safetensors").unlink()
    found, spec = read_adapter(tmp_path, base.config)
    assert spec == OURS["plain"]
    halved = jax.tree.map(lambda value: np.asarray(value).astype(np.float16).astype(np.float32), adapters)
    jax.tree.map(np.testing.assert_array_equal, found, halved)
    torch.save({"state_dict": tensors}, tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin: no plain weights: 'state_dict' is a dict"):
        read_adapter(tmp_path, base.config)


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(0, np.float32), r"is empty, of shape \[0\], as saved from one part of a sharded model"),
        (np.full((4, 32), np.nan, np.float32), "has values that are not finite"),
        (np.full((4, 32), 1e39, np.float64), "has values that are not finite"),
        (np.zeros((4, 32), np.int8), "is of type I8; supported: float32"),
        (None, "must have one lora_A and one lora_B matrix"),
        (np.zeros((4, 32, 1), np.float32), "must have one lora_A and one lora_B matrix"),
        (np.zeros((5, 32), np.float32), r"has A \[5, 32\] and B \[48, 4\]"),
    ],
)
def test_damaged_factors_are_named(value: np.ndarray | None, message: str, written: Path, base: Model) -> None:
    from safetensors.numpy import load_file, save_file

    path = written / "adapter_model.safetensors"
    tensors = {name: each for name, each in {**load_file(path), A: value}.items() if each is not None}
    save_file(tensors, path)
    with pytest.raises(InputError, match=rf"adapter_model\.safetensors: .*layers\.1\.self_attn\.q_proj.* {message}"):
        read_adapter(written, base.config)


def test_where_an_adapter_finds_its_base(base_folder: Path, base: Model, tmp_path: Path) -> None:
    adapters = random_adapters(base.config, OURS["plain"])
    options = {"base_model": str(base_folder), "revision": None, "dropout": 0.1}
    write_adapter(tmp_path, adapters, OURS["plain"], base.config, **options)  # type: ignore[arg-type]
    found, ids = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path), random_ids(320)
    ours = scores(base.config, base.params, adapters, OURS["plain"], ids)
    assert relative_error(ours, torch_scores(found, ids)) < TOLERANCE
    options |= {"base_model": "org/name", "revision": "v1"}
    write_adapter(tmp_path, adapters, OURS["plain"], base.config, **options)  # type: ignore[arg-type]
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert (read.base_model_name_or_path, read.revision) == ("org/name", "v1")


def test_missing_and_damaged_files_are_named(written: Path, base: Model) -> None:
    weights = written / "adapter_model.safetensors"
    data = weights.read_bytes()
    for size in (0, 100, -4):
        weights.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"adapter_model\.safetensors: damaged or incomplete"):
            read_adapter(written, base.config)
    weights.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no such file"):
        read_adapter(written, base.config)
    (written / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"^--adapter: .*adapter_config\.json: no such file; give what"):
        read_adapter(written, base.config)


def test_an_adapter_that_began_with_eva(written: Path, base: Model) -> None:
    """Which chooses the first A by the data, and leaves the base as it is."""
    before = read_adapter(written, base.config)
    edit(written, init_lora_weights="eva", eva_config={"rho": 2.0, "tau": 0.99})
    assert jax.tree.all(jax.tree.map(np.array_equal, read_adapter(written, base.config)[0], before[0]))


def test_a_run_that_is_given_as_an_adapter_is_answered_with_its_adapter(written: Path, base: Model) -> None:
    run = written.rename(written.with_name("adapter")).parent
    with pytest.raises(InputError, match=rf"no such file; the adapter of this run is {run}/adapter$"):
        read_adapter(run, base.config)


def test_adapters_of_another_model_are_refused(
    written: Path, base: Model, save_llama: Callable[..., Any], tmp_path: Path
) -> None:
    save_llama(tmp_path / "wide", **{**SHAPE, "hidden_size": 40})
    with pytest.raises(
        InputError, match=r"q_proj has A \[4, 32\] and B \[48, 4\], but this model's weight is \[48, 40\]"
    ):
        read_adapter(written, load(str(tmp_path / "wide")).config)
    save_llama(tmp_path / "short", **{**SHAPE, "num_hidden_layers": 2})
    with pytest.raises(InputError, match=r"model\.layers\.2\.self_attn\.q_proj is no linear map of this model"):
        read_adapter(written, load(str(tmp_path / "short")).config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "base_model.model.lm_head.lora_A.weight",
            r".*lora_A\.weight changes lm_head, the output head; only the linear .* PEFT \(merge_and_unload",
        ),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            r".* changes model\.embed_tokens, an embedding; only the",
        ),
        (
            "base_model.model.model.layers.1.input_layernorm.weight",
            r".* model\.layers\.1\.input_layernorm, a layer norm",
        ),
        (
            "base_model.model.model.norm.weight",
            r".* changes model\.norm, a layer norm; only the linear layers of blocks",
        ),
        ("base_model.model.model.other.lora_A.weight", r"model\.other must have one lora_A and one lora_B matrix"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", r"unexpected tensor .*q_proj\.bias"),
    ],
)
def test_other_tensors_are_refused(name: str, message: str, written: Path, base: Model) -> None:
    from safetensors.numpy import load_file, save_file

    path = written / "adapter_model.safetensors"
    save_file({**load_file(path), name: np.zeros((4, 32), np.float32)}, path)
    with pytest.raises(InputError, match=rf"adapter_model\.safetensors: {message}"):
        read_adapter(written, base.config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["q_proj", "lm_head"]},
            r"changes lm_head, the output head; only the linear layers of blocks",
        ),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"changes model\.embed_tokens, an embedding; only the linear"),
        (
            {"modules_to_save": ["norm"]},
            r"modules_to_save = \['norm'\] is not supported; .* linear layers of blocks; merge",
        ),
        ({"use_dora": True}, r"use_dora = True is not supported; .* merge it into its base with PEFT"),
        ({"bias": "all"}, r"bias is 'all'; .* merge it into its base with PEFT"),
    ],
)
def test_what_peft_adapts_besides_is_refused_by_module(
    options: dict[str, Any], message: str, theirs: Any, base: Model, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings that are saved too
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **options))
        adapted.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        read_adapter(tmp_path, base.config)
