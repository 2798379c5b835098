"""How much each parameter matters for what the model already does."""
