"""An episode under way: what explorers do step by step, and the record of it."""

import random
from typing import Generic, TypeVar

from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.homes.scenes import CHARACTER, Node, Scene
from e2wm_jax.worlds.household.world import World

State = TypeVar("State")


class Episode(Generic[State]):
    """The state reached and the steps so far, at most ``length`` and all of them successful."""

    def __init__(self, world: World[State], scene: Scene, length: int, rng: random.Random) -> None:
        self.world, self.scene, self.length, self.rng = world, scene, length, rng
        self.state = world.initial(scene)
        self.steps: list[Step] = []
        self.objects = [node for node in scene.nodes.values() if not node.is_room and node.class_name != CHARACTER]

    @property
    def over(self) -> bool:
        return len(self.steps) >= self.length

    def do(self, verb: str, *nodes: Node) -> bool:
        """Execute one line if there is room for it; whether it worked. A line with no effect but a message did not."""
        if self.over:
            return False
        state, step = self.world.step(
            self.state, Action(verb, tuple(Thing(node.class_name, node.id) for node in nodes))
        )
        changes = (step.edges_added, step.edges_removed, step.states_added, step.states_removed)
        if not step.ok or (step.messages and not any(changes)):
            return False
        self.state = state
        self.steps.append(step)
        return True

    def held(self) -> list[Node]:
        """What the character has in its hands."""
        character = self.scene.character.id
        hands = ("HOLDS_RH", "HOLDS_LH")
        return [self.scene.nodes[node] for hand in hands for node in self.world.targets(self.state, character, hand)]

    def containers(self, node: Node) -> list[Node]:
        """The closed things, not rooms, that the node is in."""
        places = (self.scene.nodes[place] for place in self.world.targets(self.state, node.id, "INSIDE"))
        return [p for p in places if not p.is_room and "CLOSED" in self.world.node_states(self.state, p.id)]

    def take(self, thing: Node) -> bool:
        """Go and grab the thing, out of the closed containers it is in."""
        for container in self.containers(thing):
            if not (self.do("Walk", container) and self.do("Open", container)):
                return False
        return self.do("Walk", thing) and self.do("Grab", thing)


def choice(rng: random.Random, nodes: list[Node]) -> Node:
    """A node of a random class: a house has twenty walls and hangers for each cup."""
    by_class: dict[str, list[Node]] = {}
    for node in nodes:
        by_class.setdefault(node.class_name, []).append(node)
    return rng.choice(by_class[rng.choice(sorted(by_class))])
