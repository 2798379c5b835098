"""Decoders as pure functions over nested dicts of arrays."""
