"""Files: text and JSON, tensors, models, adapters, checkpoints, metrics."""
