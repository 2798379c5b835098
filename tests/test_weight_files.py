"""Which files of a model's directory count, and what they may hold: as in transformers, or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import relative_error

from e2wm_jax.cli import main
from e2wm_jax.errors import InputError
from e2wm_jax.export.run import ExportSettings, run
from e2wm_jax.models.decoder import hidden_states, logits
from e2wm_jax.models.weights import Model, load
from e2wm_jax.storage.model_files import base_reference, locate

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("quick_compilation")

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
IDS = np.arange(2, 14, dtype=np.int32)[None]
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def scores(model: Model) -> np.ndarray:
    states = hidden_states(model.config, model.params, IDS, np.arange(12)[None], np.zeros_like(IDS))
    return np.asarray(logits(model.config, model.params, states))


def assert_as_transformers_reads_it(folder: Path) -> Model:
    from transformers import AutoModelForCausalLM

    ours = load(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert relative_error(scores(ours), theirs(torch.tensor(IDS)).logits.numpy()) < 1e-4
    return ours


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def save(folder: Path, tensors: dict[str, Any], name: str = "model.safetensors") -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / name, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(save_llama: Callable[..., Any], tmp_path: Path) -> Path:
    save_llama(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def bins(folder: Path) -> dict[str, Any]:
    """The model's tensors, now in pytorch_model.bin alone."""
    tensors = tensors_of(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return tensors


# ---------------------------------------------------------------------------------------------------- which files count


def test_other_files_beside_a_bin_are_left_alone(folder: Path, bins: dict[str, Any]) -> None:
    """Another variant, a value head, a training's state: transformers reads pytorch_model.bin alone."""
    zeros = {name: torch.zeros_like(value) for name, value in bins.items()}
    torch.save(zeros, folder / "pytorch_model.fp16.bin")
    torch.save({"step": 3}, folder / "pytorch_model_fsdp.bin")
    save(folder, {"v_head.summary.weight": torch.zeros(1, 32)}, "value_head.safetensors")
    save(folder, zeros, "model.fp16.safetensors")
    assert_as_transformers_reads_it(folder)


def test_the_order_in_which_files_count(folder: Path, save_llama: Callable[..., Any], tmp_path: Path) -> None:
    """One file before an index, safetensors before .bin; what an index names, and nothing else."""
    found = []
    save_llama(tmp_path / "sharded", seed=1, save_options={"max_shard_size": "20KB"})
    for path in (tmp_path / "sharded").glob("model*"):
        path.rename(folder / path.name)
    other = {name: 2 * value for name, value in tensors_of(folder).items()}
    torch.save(other, folder / "pytorch_model.bin")
    names = sorted(other)
    for number, part in ((1, names[:9]), (2, names[9:])):
        torch.save({name: 3 * other[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    weight_map = {name: f"pytorch_model-0000{1 + (at >= 9)}-of-00002.bin" for at, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for first in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        found.append(assert_as_transformers_reads_it(folder).fingerprint)
        (folder / first).unlink()
    found.append(assert_as_transformers_reads_it(folder).fingerprint)
    assert len({*found}) == 4
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        InputError, match=r"pytorch_model-00002-of-00002\.bin is named in pytorch_model\.bin\.index\.jso"
    ):
        load(str(folder))


def test_weights_under_another_name_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(InputError, match=r"model: no weights in it \(.*\); model\.fp16\.safetensors is not read"):
        load(str(folder))


@pytest.mark.parametrize("name", ["consolidated.00.pth", "tf_model.h5", "flax_model.msgpack"])
def test_weights_of_other_programs_are_named(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(InputError, match=rf"model: no weights in it \(.*\); {name} is not read under that name"):
        load(str(folder))


def test_a_link_to_weights_that_are_gone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"; model\.safetensors is a link to nothing, or no file; fetch the model agai"
    ):
        load(str(folder))


def test_names_with_what_a_trainer_put_in_front(folder: Path, bins: dict[str, Any]) -> None:
    torch.save({f"module.{name}": value for name, value in bins.items()}, folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"21 weights are missing, .*; it is there as module\.lm_head\.weight: save the"
    ):
        load(str(folder))


def test_a_file_or_a_folder_of_files_in_place_of_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"model\.safetensors: is a file; give the directory that it is in, or a \.gguf"
    ):
        locate(str(folder / "model.safetensors"))
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs/model.gguf").touch()
    with pytest.raises(InputError, match=r"has no config\.json; give .* model, or .*ggufs/model\.gguf$"):
        locate(str(tmp_path / "ggufs"))


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": "../a.safetensors"}, {"a": "a.bin"}])
def test_an_index_that_names_no_files(weight_map: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json: weight_map must name the \*\.safetensors"):
        load(str(folder))


def test_a_tensor_in_two_files(folder: Path) -> None:
    tensors = tensors_of(folder)
    for name in ("a.safetensors", "b.safetensors"):
        save(folder, tensors, name)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict(zip(sorted(tensors), ["a.safetensors", "b.safetensors"] * 99, strict=False))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"b\.safetensors: lm_head\.weight is in a\.safetensors too"):
        load(str(folder))


def test_a_model_that_holds_an_adapter_is_refused(folder: Path) -> None:
    """transformers would put it on the model."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"model holds an adapter beside the model; move adapter_config\.json"):
        locate(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"model is an adapter; give its base here, and this as --adapter"):
        locate(str(folder))


def test_a_file_that_the_configuration_names_is_refused(folder: Path) -> None:
    edit_config(folder, transformers_weights="other.safetensors")
    with pytest.raises(InputError, match=r"config\.json: transformers_weights is not supported"):
        load(str(folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "model.gguf"]
)
def test_lfs_pointers_are_named_for_what_they_are(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    model = folder / name if name.endswith("gguf") else folder
    (tmp_path / "text.txt").write_text("The cup\n")
    assert main(["eval", "perplexity", "--model", str(model), "--data", str(tmp_path / "text.txt")]) == 2
    assert f"{name}: a git-LFS pointer, not the file that it stands for; run `git lfs pull`" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- what they hold


def test_parameters_and_shared_storages_in_a_bin(folder: Path, bins: dict[str, Any]) -> None:
    """Parameters that want gradients, views of one storage, float64, transposed and bfloat16 tensors."""
    up, gate = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate"))
    both = torch.cat([bins[up], bins[gate]])
    odd = {name: torch.nn.Parameter(value) for name, value in bins.items()}
    odd |= {up: both[:48], gate: both[48:], HEAD: bins[HEAD].double(), TABLE: bins[TABLE].T.contiguous().T}
    odd["model.norm.weight"] = bins["model.norm.weight"].bfloat16()
    torch.save(odd, folder / "pytorch_model.bin")
    assert_as_transformers_reads_it(folder)


def test_a_bin_of_old_torch(folder: Path, bins: dict[str, Any]) -> None:
    expected = load(str(folder)).fingerprint
    torch.save(bins, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert assert_as_transformers_reads_it(folder).fingerprint == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "'state_dict' is a dict; save what is under 'state_dict'"),
        ({"epoch": 3, "model": {}}, "'epoch' is a int; save what is under 'model' alone"),
        ({"a": torch.zeros(1), "b": [1]}, "'b' is a list; save its tensors alone"),
        ({"a": torch.zeros(2).to_sparse()}, r"'a' is a torch\.sparse_coo tensor; save its tensors alone"),
        ({"a": torch.zeros(2, device="meta")}, "'a' is a tensor without values"),
        (torch.nn.Linear(2, 2), r".* more than tensors, such as a whole module; save its state_dict\(\) alone$"),
        ({1: torch.zeros(1)}, "a tensor's name is 1, not text"),
        ([torch.zeros(1)], "it holds a list, not tensors by name"),
    ],
)
def test_a_bin_that_is_something_else(content: Any, message: str, folder: Path, bins: dict[str, Any]) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"pytorch_model\.bin: no plain weights: {message}"):
        load(str(folder))


def test_a_bin_that_is_a_program_is_not_run(folder: Path, bins: dict[str, Any], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: no plain weights: no file of torch\.save, or one that"):
        load(str(folder))
    assert not (tmp_path / "run").exists()


def test_double_precision(folder: Path, tmp_path: Path) -> None:
    """Read and exported as float32; the configuration of transformers says what it computes in."""
    expected = load(str(folder)).fingerprint
    save(folder, {name: value.double() for name, value in tensors_of(folder).items()})
    assert assert_as_transformers_reads_it(folder).fingerprint == expected
    run(ExportSettings(str(folder), tmp_path / "out"))
    assert load(str(tmp_path / "out")).fingerprint == expected


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.complex64, torch.bool])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_other_types_are_refused(dtype: Any, form: str, folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors[HEAD] = tensors[HEAD].abs().to(dtype)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save(folder, tensors)
    with pytest.raises(
        InputError, match=r"model: lm_head\.weight is of type .*; supported: float32, float16, bfloat16"
    ):
        load(str(folder))


def test_a_tied_model_with_a_head_of_its_own(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    ours = assert_as_transformers_reads_it(folder)
    assert not ours.config.tied
    run(ExportSettings(str(folder), tmp_path / "out"))
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert assert_as_transformers_reads_it(tmp_path / "out").fingerprint == ours.fingerprint


def test_a_tied_model_with_its_head_alone(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    tensors = tensors_of(folder)
    save(folder, {name: value for name, value in tensors.items() if name != TABLE})
    ours = assert_as_transformers_reads_it(folder)
    assert ours.config.tied
    np.testing.assert_array_equal(ours.params["embed"]["weight"], tensors[HEAD])


# -------------------------------------------------------------------------------------------------- values not finite


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", TABLE, "model.norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(
    name: str, value: float, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(folder)
    tensors[name].view(-1)[-1] = value
    save(folder, tensors)
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        f"{folder}/model.safetensors: {name} has values that are not finite (NaN, infinite or beyond float32)" in error
    )
    assert not (tmp_path / "out").exists()


def test_values_beyond_the_type_that_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    tensors = tensors_of(folder)
    tensors[HEAD][0, 0] = 70000.0
    save(folder, tensors)
    with pytest.raises(InputError, match=r"lm_head\.weight has values that are not finite in float16; give --dtype"):
        run(ExportSettings(str(folder), tmp_path / "out", dtype="float16"))
    assert not (tmp_path / "out").exists()
    tensors[HEAD] = tensors[HEAD].double() * 1e40
    save(folder, tensors)
    with pytest.raises(
        InputError,
        match=r"model\.safetensors: lm_head\.weight has values that are not finite \(NaN, infinite or beyond float32",
    ):
        load(str(folder))


# ------------------------------------------------------------------------------------------------------------- the hub


class FakeHub:
    """huggingface_hub's snapshot_download over a folder for each "repository@revision"."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[str]()

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        from fnmatch import fnmatch
        from shutil import copyfile

        source, local = self.root / f"{repository}@{revision or 'main'}", self.root / "cache"
        if not source.is_dir():
            raise FileNotFoundError(f"404: {repository}\nhow to log in")
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            name = str(path.relative_to(source))
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                copyfile(path, local / name)
                self.asked.append(name)
        return str(local)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    return fake


SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("model", "form"),
    [("org/name", "one"), ("org/name@v1.0", "shards"), ("name", "bin"), ("name@refs/pr/3", "bin shards")],
)
def test_a_model_of_the_hub(
    model: str, form: str, hub: FakeHub, save_llama: Callable[..., Any], tmp_path: Path
) -> None:
    source = hub.root / (model if "@" in model else f"{model}@main")
    save_llama(source, save_options={"max_shard_size": "40KB"} if form == "shards" else {})
    expected = load(str(source)).fingerprint
    if form.startswith("bin"):
        tensors = tensors_of(source)
        (source / "model.safetensors").unlink()
        torch.save(tensors, source / ("pytorch_model.bin" if form == "bin" else "part.bin"))
        if form == "bin shards":
            weight_map = dict.fromkeys(tensors, "part.bin")
            (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    weights = {path.name for path in source.iterdir()} - SMALL
    others = ["modeling_llama.py", "consolidated.safetensors", "onnx/model.safetensors", "pytorch_model.fp16.bin"]
    for name in [*others, "chat_template.jinja", "chat_templates/tools.jinja"]:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{{ messages }}")
    assert load(model).fingerprint == expected
    assert {*hub.asked} == weights | SMALL | {"chat_template.jinja", "chat_templates/tools.jinja"}
    assert len(hub.asked) == len({*hub.asked})


def test_what_the_hub_has_not(hub: FakeHub, save_llama: Callable[..., Any]) -> None:
    for model in ("org/name", "gpt3", "org/name@v2"):
        with pytest.raises(
            InputError, match=rf"--model {model}: no such directory, and the hub did not give it \(404:"
        ):
            locate(model)
    save_llama(hub.root / "org/name@main")
    (hub.root / "org/name@main/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights in it"):
        locate("org/name")
    (hub.root / "org/name-GGUF@main").mkdir()
    (hub.root / "cache/config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json; .*; of a repository of \.gguf files, download one and"):
        locate("org/name-GGUF")
    for model in ("a/b/c", "../x/y/z", "org/", "-a b", "name@", "x.gguf"):
        with pytest.raises(InputError, match=r"no such directory or \.gguf file, and not a known"):
            locate(model)


def test_what_an_adapter_says_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found from anywhere: an absolute path, or a hub id."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model.gguf").touch()
    assert base_reference("model") == (str(tmp_path / "model"), None)
    assert base_reference("model.gguf") == (str(tmp_path / "model.gguf"), None)
    assert base_reference("smollm2-135m") == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)
    assert base_reference("org/name@v1") == ("org/name", "v1")
    assert base_reference("gpt2") == ("gpt2", None)
