"""How the adapters are held near the pretrained weights: pure functions of (adapters, state)."""
