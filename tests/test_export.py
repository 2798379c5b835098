"""Weights out: bit for bit what transformers loads, merged adapters, and directories that are never half-made."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_torch_model

from e2wm_jax import lora
from e2wm_jax.cli import main
from e2wm_jax.config import LlamaConfig, LoraConfig
from e2wm_jax.errors import InputError
from e2wm_jax.export.run import ExportSettings, run
from e2wm_jax.models.decoder import hidden_states, logits, weight_table
from e2wm_jax.models.saving import new_folder, save
from e2wm_jax.models.weights import Model, flatten, load, unflatten
from e2wm_jax.sharding import make_mesh
from e2wm_jax.storage.adapter_files import read_adapter, write_adapter
from e2wm_jax.storage.tensor_files import write_safetensors

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**WIDTH, "num_key_value_heads": 2, "attention_bias": True},
    "llama-tied": {**WIDTH, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {**WIDTH, "num_key_value_heads": 2, "sliding_window": 8},
    "qwen2": {**WIDTH, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {**WIDTH, "num_key_value_heads": 2, "head_dim": 16},
    "gpt_neox": WIDTH,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48},
    "opt-350m": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
    | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
}


@pytest.fixture(scope="module")
def theirs(torch_oracle: Any) -> Callable[[str], Any]:
    """theirs(name) is a fresh random model in torch."""

    def make(name: str) -> Any:
        options = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **FAMILIES[name]}
        return random_torch_model(name.split("-")[0], None, **options)

    return make


def read_files(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_hugging_face_and_back_is_bit_equal(name: str, theirs: Callable[[str], Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    ours = load(str(tmp_path / "theirs"))
    save(tmp_path / "ours", ours.config, ours.params)
    assert_same_bits(read_files(tmp_path / "ours"), read_files(tmp_path / "theirs"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    states, expected = again.state_dict(), model.state_dict()
    assert states.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(states[key], value), key
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():  # the configuration says the same, too
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["llama", "gptj"])
@pytest.mark.parametrize(
    ("stored", "held"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")]
)
def test_half_precision_files_stay_bit_equal(
    stored: Any, held: Any, name: str, theirs: Callable[[str], Any], tmp_path: Path
) -> None:
    theirs(name).to(getattr(torch, stored)).save_pretrained(tmp_path / "theirs")
    ours = load(str(tmp_path / "theirs"), held)
    assert {value.dtype for value in flatten(ours.params).values()} == {jnp.dtype(held)}
    save(tmp_path / "ours", ours.config, ours.params, dtype=stored)
    assert_same_bits(read_files(tmp_path / "ours"), read_files(tmp_path / "theirs"))
    assert json.loads((tmp_path / "ours/config.json").read_text())["torch_dtype"] == stored


def test_shards_as_transformers_reads_them(theirs: Callable[[str], Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs("llama").save_pretrained(tmp_path / "whole")
    ours = load(str(tmp_path / "whole"))
    total = save(tmp_path / "ours", ours.config, ours.params, max_shard_bytes=20_000)
    shards = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert max(sum(v.nbytes for v in read_files_of(shard).values()) for shard in shards) <= 20_000
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == sum(v.nbytes for v in read_files(tmp_path / "whole").values())
    assert_same_bits(read_files(tmp_path / "ours"), read_files(tmp_path / "whole"))
    states = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(states[key], torch.tensor(v)) for key, v in read_files(tmp_path / "whole").items())
    assert load(str(tmp_path / "ours")).fingerprint == ours.fingerprint


def read_files_of(shard: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(shard)


def test_from_a_mesh(theirs: Callable[[str], Any], tmp_path: Path) -> None:
    theirs("gpt_neox").save_pretrained(tmp_path / "theirs")
    ours = load(str(tmp_path / "theirs"), mesh=make_mesh("data=2,fsdp=2,tensor=2"))
    save(tmp_path / "ours", ours.config, ours.params)
    assert_same_bits(read_files(tmp_path / "ours"), read_files(tmp_path / "theirs"))


# -------------------------------------------------------------------------------------------------------------- merging


def random_adapter(model: Model, folder: Path, **options: Any) -> None:
    spec = lora.adapter_spec(model.config, LoraConfig(rank=3, alpha=7.0, targets="all-linear", **options))
    random = np.random.default_rng(0)
    adapters = {
        target.path: {
            "a": random.normal(size=(2, 3, model.params["layers"][target.path[7:]]["weight"].shape[2])) * 0.1,
            "b": random.normal(size=(2, model.params["layers"][target.path[7:]]["weight"].shape[1], 3)) * 0.1,
        }
        for target in spec
    }
    write_adapter(folder, adapters, spec, model.config, base_model="base", dropout=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "rslora"), [("llama", True), ("gpt_neo", False)])
def test_merged_model_is_base_and_adapter(
    name: str, rslora: bool, theirs: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base_model = theirs(name)
    base_model.save_pretrained(tmp_path / "base")
    base = load(str(tmp_path / "base"))
    random_adapter(base, tmp_path / "adapter", rslora=rslora)
    words = ["--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]
    assert main(["export", *words, "--format", "merged", "--json"]) == 0
    count = sum(value.size for value in flatten(base.params).values())
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {"out": str(tmp_path / "out"), "bytes": 4 * count, "parameters": count}

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = np.arange(2, 26).reshape(2, 12) % 60
    with torch.no_grad():
        found = merged(torch.tensor(ids)).logits.numpy()
    attached = lora.attach(base.params, *read_adapter(tmp_path / "adapter", base.config))
    positions = jnp.broadcast_to(jnp.arange(12), ids.shape)
    hidden = hidden_states(base.config, attached, jnp.asarray(ids), positions, jnp.zeros_like(positions))
    expected = np.asarray(logits(base.config, attached, hidden))
    assert np.max(np.abs(found - expected)) <= 1e-5 * np.max(np.abs(expected))

    by_peft = peft.PeftModel.from_pretrained(base_model, tmp_path / "adapter").merge_and_unload().state_dict()
    for key, value in read_files(tmp_path / "out").items():
        np.testing.assert_allclose(value, by_peft[key].numpy(), rtol=1e-6, atol=1e-6, err_msg=key)


def test_an_adapter_that_is_too_large(theirs: Callable[[str], Any], tmp_path: Path) -> None:
    """Its factors are finite, their product is not."""
    theirs("llama").save_pretrained(tmp_path / "base")
    random_adapter(load(str(tmp_path / "base")), tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 3e38, "use_rslora": True}))
    factors = read_files(tmp_path / "adapter")
    write_safetensors(tmp_path / "adapter/adapter_model.safetensors", {name: 1e3 * v for name, v in factors.items()})
    with pytest.raises(
        InputError, match=r"weight has values that are not finite; an adapter that was merged into it is"
    ):
        run(ExportSettings(str(tmp_path / "base"), tmp_path / "out", adapter=tmp_path / "adapter"))
    assert not (tmp_path / "out").exists()


def test_half_precision_is_rounded_once(theirs: Callable[[str], Any], tmp_path: Path) -> None:
    """The sum is made in float32 and rounded to what the file has; weights without an adapter keep their bits."""
    theirs("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = load(str(tmp_path / "base"))
    random_adapter(base, tmp_path / "adapter")
    run(ExportSettings(str(tmp_path / "base"), tmp_path / "out", adapter=tmp_path / "adapter"))
    adapters, spec = read_adapter(tmp_path / "adapter", base.config)
    deltas = {target.path: np.asarray(lora.delta(adapters, target)) for target in spec}
    found, before = read_files(tmp_path / "out"), read_files(tmp_path / "base")
    name = "model.layers.1.mlp.up_proj.weight"
    exact = before[name].astype(np.float32) + deltas["layers.up"][1]
    assert found[name].dtype == jnp.bfloat16
    assert (found[name] == exact.astype(jnp.bfloat16)).mean() > 0.999  # a sum in another order may fall beside a tie
    assert found["model.norm.weight"].tobytes() == before["model.norm.weight"].tobytes()
    run(ExportSettings(str(tmp_path / "base"), tmp_path / "wide", adapter=tmp_path / "adapter", dtype="float32"))
    np.testing.assert_allclose(read_files(tmp_path / "wide")[name], exact, rtol=1e-6, atol=1e-6)


def test_a_base_alone_with_all_that_belongs_to_it(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "out").mkdir()  # an empty directory is as good as none
    run(ExportSettings(str(tiny_llama), tmp_path / "out"))
    assert_same_bits(read_files(tmp_path / "out"), read_files(tiny_llama))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (tiny_llama, tmp_path / "out"))
    assert after.pop("torch_dtype") == before.pop("dtype") == "float32"
    assert after == before
    text = "Mary walks to the kitchen."
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tiny_llama, tmp_path / "out")]
    assert tokenizers[1](text)["input_ids"] == tokenizers[0](text)["input_ids"]
    assert (tmp_path / "out/generation_config.json").is_file()


# ------------------------------------------------------------------------------------------------------------ bad input


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") or path.name == "out")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_directory_that_holds_something_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        (out / "x").mkdir(parents=True)
    else:
        out.write_text("mine")
    with pytest.raises(InputError, match=rf"--out {out}: already holds something; give a new or empty directory"):
        run(ExportSettings("no such model", out))


def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2wm_jax.export.run.load", None)
    with pytest.raises(InputError, match=r"--adapter .*nowhere: no such directory"):
        run(ExportSettings(str(tiny_llama), tmp_path / "out", adapter=tmp_path / "nowhere"))
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
        run(ExportSettings(str(tiny_llama), tmp_path / "out", adapter=tmp_path / "adapter"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(
        InputError, match=r"--out .*: the weights take 0\.00 GB, but 0\.00 GB are free in .*; make room"
    ):
        run(ExportSettings(str(tiny_llama), tmp_path / "a/b/out"))
    assert left_behind(tmp_path) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 50 kB: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("shard", [None, 60_000])
def test_a_full_disk_leaves_nothing(shard: int | None, tiny_llama: Path, tmp_path: Path, request: Any) -> None:
    model = load(str(tiny_llama))
    request.getfixturevalue("small_files")
    limits = {} if shard is None else {"max_shard_bytes": shard}
    with pytest.raises(InputError, match=r"--out .*out: cannot be written \(.*[Ff]ile too large.*; nothing is left"):
        save(tmp_path / "out", model.config, model.params, **limits)
    assert left_behind(tmp_path) == []


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert left_behind(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_no_permission(tiny_llama: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot be written \(.*Permission denied"):
        run(ExportSettings(str(tiny_llama), tmp_path / "out"))


# --------------------------------------------------------------------------------------------------------------- memory

MEASURE = """
import re, sys
from e2wm_jax.models.weights import flatten, load
def memory(key):  # ru_maxrss begins at what the parent had
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
load(sys.argv[1], sys.argv[3])  # what compiling takes once
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
before = memory("VmRSS")
model = load(sys.argv[2], sys.argv[3])
print(memory("VmHWM") - before - sum(value.nbytes for value in flatten(model.params).values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_a_few_tensors_beside_the_model(dtype: str, large_model: Path, tiny_llama: Path) -> None:
    """On a CPU the arrays are host memory as well: what is beyond them is what reading takes."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    words = [sys.executable, "-c", MEASURE, str(tiny_llama), str(large_model), dtype]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    stack = 48 * 2**20  # of the largest weight's layers
    assert int(done.stdout) < 0.75 * stack, f"{int(done.stdout) / 2**20:.0f} MiB beside the model"


@pytest.fixture(scope="module")
def large_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 layers, 218 MB in float32, of which no tensor has more than 3 MB."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=512, intermediate_size=1536, num_layers=16, num_heads=8, num_kv_heads=8,
        head_dim=64, max_positions=64,
    )  # fmt: skip
    table = weight_table(config)
    flat = {p: jnp.zeros(((16, *spec.shape) if spec.stacked else spec.shape), "float32") for p, spec in table.items()}
    folder = tmp_path_factory.mktemp("large") / "model"
    assert save(folder, config, unflatten(flat), max_shard_bytes=60_000_000) > 200e6
    return folder
