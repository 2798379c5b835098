"""Finetuning: the step, the run directory, the loop."""
