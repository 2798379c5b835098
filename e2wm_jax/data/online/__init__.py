"""Endless data, made by the world while the model reads it."""
