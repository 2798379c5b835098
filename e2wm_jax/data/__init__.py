"""Text to batches; numpy only, so that loader workers never start an accelerator."""
