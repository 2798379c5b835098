"""Worlds by name; each is imported when it is asked for."""

import importlib
from typing import Any, Literal, get_args

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.world import World

WorldName = Literal["household"]
_HOMES: dict[str, str] = {"household": "e2wm_jax.worlds.household.household.Household"}


def world_of(name: str) -> World[Any]:
    """The world of this name.

    Raises:
        InputError: if there is none, naming those that there are.
    """
    if name not in _HOMES:
        raise InputError(f"--world {name}: choose one of {', '.join(get_args(WorldName))}")
    module, _, kind = _HOMES[name].rpartition(".")
    world: World[Any] = getattr(importlib.import_module(module), kind)()
    return world
