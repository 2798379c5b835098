"""Decoder architectures, one module each."""
