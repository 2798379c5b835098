"""The settings of `e2wm export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.options.choices import FileDType


@dataclass(frozen=True)
class ExportSettings:
    """Write a model as a Hugging Face directory, with an adapter merged into its weights."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    out: Path
    """Directory to write; it must not exist yet, or be empty."""
    adapter: Path | None = None
    """PEFT directory to merge, as `e2wm train` or PEFT wrote it; default: the base as it is."""
    format: Literal["merged"] = "merged"
    """merged: W + s B A in the place of W, computed in float32."""
    dtype: FileDType | None = None
    """Of the files; default: what each weight of the model is stored in, for quantized ones float32."""
