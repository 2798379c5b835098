"""The settings of `e2wm demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.storage.model_files import EMBEDDED_MODEL


@dataclass(frozen=True)
class DemoSettings:
    """Run the whole flow on the embedded default: a table, and report.html."""

    out: Path = Path("demo-run")
    """Directory to write, or to go on in."""
    preset: Literal["laptop", "tiny"] = "laptop"
    """laptop: minutes on two cores; tiny: only shows that everything runs."""
    model: str = EMBEDDED_MODEL
    """Another model may be given: a Hugging Face directory or a .gguf file."""
    seed: int = 0
