"""The named choices that settings offer and several modules know; plain data, like `config`."""

from typing import Literal

Implementation = Literal["xla", "pallas_tpu", "mosaic_gpu"]
Remat = Literal["none", "layers", "products"]  # what a backward pass computes again: nothing, layers, all but products
Schedule = Literal["linear", "cosine", "constant"]
StrengthSchedule = Literal["constant", "increase", "decrease"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "none"]
Labels = Literal["data", "sampled"]
Reduction = Literal["mean", "sum"]
FisherDType = Literal["float32", "bfloat16", "uint8"]
SetKind = Literal["qa", "generate", "babi", "perplexity"]  # of evaluation sets
TooLong = Literal["refuse", "skip", "truncate"]  # what becomes of examples for which a model has too few positions
FileDType = Literal["float32", "bfloat16", "float16"]

# In the order of docs/regularizers.md and of results; `regularizers.catalogue` has what they do.
REGULARIZER_NAMES = (
    *("none", "l2", "ewc", "online-ewc", "factor-ewc", "mas", "si", "rwalk", "row-column", "kfac"),
    *("kl-forward", "kl-reverse", "replay"),
)
