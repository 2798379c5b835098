"""The state that VirtualHome's executor works on: a shared base graph and what an episode changed in it.

The executor only calls methods on its state, so this class can stand in for VirtualHome's `EnvironmentState`, which
copies everything deeply at every step. Here states are immutable once built and share whatever a step leaves alone.

Where the executor takes "the first" of several targets, the outcome depends on the order of a Python set. VirtualHome
lets reads reorder its sets; here the order is a function of the visible history: a set filled with the targets that
were added (oldest first), then with those of the base graph in file order, less the removed ones.
"""

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from e2wm_jax.worlds.household.changes import Edge
from e2wm_jax.worlds.household.homes.scenes import Scene

Key = tuple[int, str]  # node id, relation name
GraphNode = Any  # VirtualHome's node class, loaded at run time
_NONE: frozenset[int] = frozenset()


class Base:
    """What all states of one scene share: nodes as VirtualHome's objects, edges indexed both ways."""

    def __init__(self, scene: Scene, environment: ModuleType) -> None:
        self.scene = scene
        self.environment = environment
        self.nodes: dict[int, GraphNode] = {
            node.id: environment.GraphNode(
                node.id,
                node.class_name,
                {environment.Property[name] for name in node.properties},
                {environment.State[name] for name in node.states},
                node.category,
                None,
                None,
            )
            for node in scene.nodes.values()
        }
        self.character: GraphNode = self.nodes[scene.character.id]
        self.body_parts = frozenset(node.id for node in scene.nodes.values() if "BODY_PART" in node.properties)
        self.in_file_order: dict[Key, dict[int, None]] = {}
        sources: dict[Key, set[int]] = {}
        for source, relation, target in scene.edges:
            self.in_file_order.setdefault((source, relation), {})[target] = None
            sources.setdefault((target, relation), set()).add(source)
        self.targets = {key: frozenset(targets) for key, targets in self.in_file_order.items()}
        self.sources = {key: frozenset(nodes) for key, nodes in sources.items()}
        self.ordered = {key: _set_order({}, targets, _NONE) for key, targets in self.in_file_order.items()}


def _set_order(added: Mapping[int, None], base: Mapping[int, None], removed: frozenset[int]) -> tuple[int, ...]:
    # One by one: a set built from a whole dict or set would be given another table size, hence another order.
    order = {*()}
    for node in added:
        order.add(node)
    for node in base:
        order.add(node)
    order.difference_update(removed)
    return tuple(order)


class Overlay:
    """One state. ``nodes`` are those whose states changed, ``added`` the edges beyond the base graph, ``removed``
    the edges of the base graph that are gone, ``executor_data`` the executor's memory of where things were grabbed.
    None of the dictionaries is written to after `change_state` has returned."""

    __slots__ = ("added", "base", "executor_data", "nodes", "removed")

    def __init__(self, base: Base) -> None:
        self.base = base
        self.nodes: dict[int, GraphNode] = {}
        self.added: dict[Key, dict[int, None]] = {}
        self.removed: dict[Key, frozenset[int]] = {}
        self.executor_data: dict[Any, Any] = {}

    # What is true

    def targets(self, node: int, relation: str) -> tuple[int, ...]:
        """Targets of the edges from ``node``, in the order in which the executor sees them."""
        key = (node, relation)
        added, removed = self.added.get(key), self.removed.get(key)
        if not added and not removed:
            return self.base.ordered.get(key, ())
        return _set_order(added or {}, self.base.in_file_order.get(key, {}), removed or _NONE)

    def target_set(self, key: Key) -> frozenset[int]:
        alive = self.base.targets.get(key, _NONE)
        if removed := self.removed.get(key):
            alive = alive - removed
        if added := self.added.get(key):
            alive = alive.union(added)
        return alive

    def sources(self, node: int, relation: str) -> frozenset[int]:
        """Sources of the edges to ``node``."""
        alive = {
            source
            for source in self.base.sources.get((node, relation), _NONE)
            if node not in self.removed.get((source, relation), _NONE)
        }
        alive.update(key[0] for key, targets in self.added.items() if node in targets and key[1] == relation)
        return frozenset(alive)

    def holds(self, source: int, relation: str, target: int) -> bool:
        key = (source, relation)
        if target in self.added.get(key, ()):
            return True
        return target in self.base.targets.get(key, _NONE) and target not in self.removed.get(key, _NONE)

    def edges(self) -> set[Edge]:
        keys = self.base.targets.keys() | self.added.keys()
        return {(key[0], key[1], target) for key in keys for target in self.target_set(key)}

    # The part of VirtualHome's EnvironmentState that the executor calls

    def select_nodes(self, thing: Any) -> list[GraphNode | None]:
        return [self.get_node(thing.instance)]

    def get_state_node(self, thing: Any) -> GraphNode | None:
        return self.get_node(thing.instance)

    def get_node(self, node: int) -> GraphNode | None:
        return self.nodes.get(node) or self.base.nodes.get(node)

    def get_nodes(self) -> list[GraphNode]:
        changed = self.nodes
        return [*changed.values(), *(node for node in self.base.nodes.values() if node.id not in changed)]

    def get_nodes_by_attr(self, attribute: str, value: Any) -> list[GraphNode]:
        if attribute == "class_name":  # never changes
            return [
                self.nodes.get(node.id) or self.base.nodes[node.id] for node in self.base.scene.by_class.get(value, ())
            ]
        return [node for node in self.get_nodes() if getattr(node, attribute) == value]

    def get_nodes_from(self, node: GraphNode, relation: Any) -> list[GraphNode]:
        changed, base = self.nodes, self.base.nodes
        return [changed.get(target) or base[target] for target in self.targets(node.id, relation._name_)]

    def get_char_node(self, _: int) -> Iterator[GraphNode]:
        # VirtualHome reads the character from the initial graph, so checks see its initial states for ever.
        return iter((self.base.character,))

    def evaluate(self, condition: Any) -> bool:
        """The truth of a VirtualHome condition; the two usual forms are answered from the indexes."""
        environment = self.base.environment
        kind = type(condition)
        if kind is environment.ExistsRelation and type(condition.to_nodes) is environment.NodeInstanceFilter:
            relation, target = condition.relation._name_, condition.to_nodes.node.id
            return any(self.holds(node.id, relation, target) for node in condition.from_nodes.enumerate(self))
        if kind is environment.CountRelations and type(condition.from_nodes) is environment.AnyNode:
            found = self.sources(condition.to_nodes.node.id, condition.relation._name_)
            return len(found) >= int(condition.min_value)
        return bool(condition.evaluate(self))

    def change_state(self, changers: list[Any], *_: Any, **__: Any) -> "Overlay":
        """A new state with the executor's changes applied in order."""
        new = Overlay(self.base)
        new.nodes, new.added, new.removed = self.nodes.copy(), self.added.copy(), self.removed.copy()
        new.executor_data = self.executor_data.copy()
        environment = self.base.environment
        apply: dict[type, Callable[[Any], None]] = {
            environment.AddEdges: new._add_edges,
            environment.DeleteEdges: new._delete_edges,
        }
        for changer in changers:
            (apply.get(type(changer)) or (lambda other: other.apply_changes(new)))(changer)
        return new

    # What changers do to a state that is being built. Inner dictionaries and sets are shared: replace, never mutate.

    def change_node(self, node: GraphNode) -> None:
        self.nodes[node.id] = node

    def _add_edges(self, changer: Any) -> None:
        relation = changer.relation._name_
        for source in changer.from_node.enumerate(self):
            for target in self._enumerate(changer.to_node):
                self._add(source.id, relation, target.id)
                if changer.add_reverse:
                    self._add(target.id, relation, source.id)

    def _enumerate(self, enumerator: Any) -> list[GraphNode]:
        """What the enumerator yields, in its order, without asking every node of the scene."""
        environment = self.base.environment
        if type(enumerator) is environment.BodyNode:
            wanted = self.base.body_parts
        elif type(enumerator) is environment.ObjectInsideNode:
            wanted = self.sources(enumerator.container_node.id, "INSIDE")
        else:
            return list(enumerator.enumerate(self))
        return [node for node in self.get_nodes() if node.id in wanted] if wanted else []

    def _delete_edges(self, changer: Any) -> None:
        relations = [relation._name_ for relation in changer.relations]
        everything = type(changer.to_node) is self.base.environment.AnyNode
        for source in changer.from_node.enumerate(self):
            for relation in relations:
                targets = self.target_set((source.id, relation))
                if not everything:
                    targets = targets.intersection([node.id for node in changer.to_node.enumerate(self)])
                for target in targets:
                    self._delete(source.id, relation, target)
                if changer.delete_reverse:
                    for other in self.sources(source.id, relation):
                        self._delete(other, relation, source.id)

    def _add(self, source: int, relation: str, target: int) -> None:
        key = (source, relation)
        removed = self.removed.get(key, _NONE)
        if target in removed:
            self.removed[key] = removed - {target}
        elif target not in self.base.targets.get(key, _NONE):
            self.added[key] = {**self.added.get(key, {}), target: None}

    def _delete(self, source: int, relation: str, target: int) -> None:
        key = (source, relation)
        if target in self.base.targets.get(key, _NONE):
            self.removed[key] = self.removed.get(key, _NONE) | {target}
        elif target in self.added.get(key, ()):
            self.added[key] = {other: None for other in self.added[key] if other != target}
