"""Train and eval halves that share nothing: whole connected components go to one side."""

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Keys = Callable[[Item], Iterable[Hashable]]


def components(items: Sequence[Item], keys: Keys[Item]) -> list[list[Item]]:
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
    keys: Keys[Item],
    *,
    eval_share: float,
    rng: random.Random,
    held_out: Callable[[Item], bool] = lambda _: False,
) -> tuple[list[Item], list[Item]]:
    """(train, eval) without a common key.

    Components are visited in random order and go to eval while they fit into ``eval_share`` of the items (at least
    one); a component too large for what is left goes to train. With a single component eval is empty. Components
    with an item that must be held out go to eval before all others, however large they are.
    """
    groups = components(items, keys)
    rng.shuffle(groups)
    room = max(1, round(eval_share * len(items))) if eval_share > 0 and len(groups) > 1 else 0
    evaluated = [item for group in groups if any(map(held_out, group)) for item in group]
    groups = [group for group in groups if not any(map(held_out, group))]
    train: list[Item] = []
    for group in groups:
        if len(group) <= room - len(evaluated):
            evaluated += group
        else:
            train += group
    if room and not evaluated:
        smallest = min(groups, key=len)
        return [item for group in groups if group is not smallest for item in group], list(smallest)
    return train, evaluated


def whole_names(
    items: Sequence[Item],
    keys: Keys[Item],
    name: Callable[[Item], str],
    *,
    share: float,
    room: int,
    rng: random.Random,
) -> frozenset[str]:
    """Names to hold out wholly, so that train has none of their items: ``share`` of all names, or fewer.

    Names are tried in random order, and taken while their items, with all that are linked to them by a key, are no
    more than half of ``room``. Where none is so small, the one with the fewest is taken if it fits into ``room``.
    """
    groups = components(items, keys)
    names = sorted({name(item) for item in items})
    rng.shuffle(names)

    def taken(chosen: Collection[str]) -> int:
        return sum(len(group) for group in groups if any(name(item) in chosen for item in group))

    wanted = max(1, round(share * len(names))) if share > 0 and len(names) > 1 else 0
    chosen: list[str] = []
    for candidate in names:
        if len(chosen) < wanted and taken([*chosen, candidate]) <= room / 2:
            chosen.append(candidate)
    if wanted and not chosen:
        smallest = min(names, key=lambda candidate: taken([candidate]))
        chosen = [smallest] if taken([smallest]) <= room else []
    return frozenset(chosen)
