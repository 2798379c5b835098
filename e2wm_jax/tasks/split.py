"""Train and eval halves that share nothing: whole connected components go to one side."""

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def components(items: Sequence[Item], keys: Callable[[Item], Iterable[Hashable]]) -> list[list[Item]]:
    """Group items that are linked, directly or through others, by an equal key; in order of first appearance."""
    parent = list(range(len(items)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    owner: dict[Hashable, int] = {}
    for index, item in enumerate(items):
        for key in keys(item):
            first, second = sorted((root(index), root(owner.setdefault(key, index))))
            parent[second] = first
    groups: dict[int, list[Item]] = {}
    for index, item in enumerate(items):
        groups.setdefault(root(index), []).append(item)
    return list(groups.values())


def split(
    items: Sequence[Item],
    keys: Callable[[Item], Iterable[Hashable]],
    *,
    eval_share: float,
    rng: random.Random,
) -> tuple[list[Item], list[Item]]:
    """(train, eval) without a common key.

    Components are visited in random order and go to eval while they fit into ``eval_share`` of the items (at least
    one); a component too large for what is left goes to train. With a single component eval is empty.
    """
    groups = components(items, keys)
    rng.shuffle(groups)
    room = max(1, round(eval_share * len(items))) if eval_share > 0 and len(groups) > 1 else 0
    train: list[Item] = []
    held_out: list[Item] = []
    for group in groups:
        if len(group) <= room - len(held_out):
            held_out += group
        else:
            train += group
    if room and not held_out:
        smallest = min(groups, key=len)
        return [item for group in groups if group is not smallest for item in group], list(smallest)
    return train, held_out
