"""Random exploration: seeded episodes of actions that the world accepts.

``carry`` makes what counting and tracking questions are about: the character takes objects, carries them to
surfaces and puts them there, mostly onto one surface per episode, with other actions in between. ``uniform`` draws
verbs and objects blindly.
"""

import random
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from e2wm_jax.simulate.actions import VERBS, Action, Thing
from e2wm_jax.simulate.scenes import Node, Scene
from e2wm_jax.simulate.trajectory import Step
from e2wm_jax.simulate.world import World

State = TypeVar("State")
Style = Literal["carry", "uniform"]

_ATTEMPTS = 200  # vain draws in a row after which an episode ends early
# Noise leaves alone where things are. Sitting and lying are out: vh23 lets a seated character walk away on its chair.
_NOISE = (
    "TurnTo",
    "LookAt",
    "Touch",
    "Wash",
    "Rinse",
    "Scrub",
    "Push",
    "Pull",
    "Open",
    "Close",
    "SwitchOn",
    "SwitchOff",
)
_SAMPLED = tuple(verb for name, verb in VERBS.items() if not name.startswith("LOOKAT_"))


class _Episode(Generic[State]):
    """An episode under way: the steps so far, all of them successful."""

    def __init__(self, world: World[State], scene: Scene, length: int, rng: random.Random) -> None:
        self.world, self.scene, self.length, self.rng = world, scene, length, rng
        self.state = world.initial(scene)
        self.steps: list[Step] = []
        self.objects = [node for node in scene.nodes.values() if not node.is_room and node.class_name != "character"]

    @property
    def over(self) -> bool:
        return len(self.steps) >= self.length

    def do(self, verb: str, *nodes: Node) -> bool:
        """Execute one line if there is room for it; whether it worked. Lines without effect but a message do not."""
        if self.over:
            return False
        state, step = self.world.step(
            self.state, Action(verb, tuple(Thing(node.class_name, node.id) for node in nodes))
        )
        if not step.ok or (step.messages and state is self.state):
            return False
        self.state = state
        self.steps.append(step)
        return True

    def held(self) -> list[Node]:
        character = self.scene.character.id
        hands = ("HOLDS_RH", "HOLDS_LH")
        return [self.scene.nodes[node] for hand in hands for node in self.world.targets(self.state, character, hand)]

    def containers(self, node: Node) -> list[Node]:
        """The closed things, not rooms, that the node is in."""
        places = (self.scene.nodes[place] for place in self.world.targets(self.state, node.id, "INSIDE"))
        return [p for p in places if not p.is_room and "CLOSED" in self.world.node_states(self.state, p.id)]


def explore(world: World[State], scene: Scene, *, length: int, seed: int, style: Style = "carry") -> list[Step]:
    """One episode of at most ``length`` successful steps; equal arguments, equal steps.

    It is shorter only where nothing more can be done (a character who starts seated cannot walk in vh23).
    """
    episode = _Episode(world, scene, length, random.Random(seed))
    play = _STYLES[style](episode)
    failures = 0
    while not episode.over and failures < _ATTEMPTS:
        before = len(episode.steps)
        play()
        failures = failures + 1 if len(episode.steps) == before else 0
    return episode.steps


def _carry(episode: _Episode[State]) -> Callable[[], None]:
    """Errands: fetch an object, put it somewhere; every second one goes to the episode's own surface."""
    rng = episode.rng
    surfaces = [node for node in episode.objects if _is_surface(node)]
    portable = [node for node in episode.objects if "GRABBABLE" in node.properties]
    favorite = _choice(rng, surfaces) if surfaces else None

    def errand() -> None:
        if rng.random() < 0.35 or not portable or favorite is None:
            return _noise(episode)
        thing = _choice(rng, portable)
        surface = favorite if rng.random() < 0.5 else _choice(rng, surfaces)
        if thing.id == surface.id or episode.length - len(episode.steps) < 4 or not _fetch(episode, thing):
            return None
        if rng.random() < 0.3:
            _noise(episode)
        if episode.do("Walk", surface):
            if rng.random() < 0.5:
                episode.do("Find", surface)
            episode.do("PutBack", thing, surface)
        return None

    return errand


def _is_surface(node: Node) -> bool:
    return not node.properties.isdisjoint({"SURFACES", "SITTABLE", "LIEABLE"}) and "GRABBABLE" not in node.properties


def _fetch(episode: _Episode[State], thing: Node) -> bool:
    """Go and take the thing, out of what it is in. With both hands full something is put down first."""
    held = episode.held()
    if thing in held:
        return True
    if len(held) == 2 and not episode.do("Drop", episode.rng.choice(held)):
        return False
    for container in episode.containers(thing):
        if not (episode.do("Walk", container) and episode.do("Open", container)):
            return False
    return episode.do("Walk", thing) and episode.do("Grab", thing)


def _noise(episode: _Episode[State]) -> None:
    """One harmless action on something near, or a walk."""
    rng = episode.rng
    near = [episode.scene.nodes[node] for node in _near(episode)]
    verb = VERBS[rng.choice(_NOISE).upper()]
    fitting = [node for node in near if _suits(verb.needs[0], node)]
    if not fitting or rng.random() < 0.25 or not episode.do(verb.name, _choice(rng, fitting)):
        episode.do(rng.choice(("Walk", "Run")), _choice(rng, episode.objects))


def _uniform(episode: _Episode[State]) -> Callable[[], None]:
    """A verb, then objects that may suit it: half the time from those within reach."""
    rng = episode.rng

    def draw() -> None:
        verb = rng.choice(_SAMPLED)
        pool = [episode.scene.nodes[node] for node in _near(episode)] if rng.random() < 0.5 else episode.objects
        options = [[node for node in pool if _suits(needs, node)] for needs in verb.needs]
        if verb.name in ("Walk", "Run"):
            options = [list(episode.scene.nodes.values())]
        if all(options):
            episode.do(verb.name, *(_choice(rng, nodes) for nodes in options))

    return draw


_STYLES: dict[Style, Callable[..., Callable[[], None]]] = {"carry": _carry, "uniform": _uniform}


def _near(episode: _Episode[State]) -> list[int]:
    """What the character is close to, itself and rooms left out, sorted."""
    known = {node.id for node in episode.objects}
    return sorted(known.intersection(episode.world.targets(episode.state, episode.scene.character.id, "CLOSE")))


def _choice(rng: random.Random, nodes: list[Node]) -> Node:
    """A node of a random class: a house has twenty walls and hangers for each cup."""
    by_class: dict[str, list[Node]] = {}
    for node in nodes:
        by_class.setdefault(node.class_name, []).append(node)
    return rng.choice(by_class[rng.choice(sorted(by_class))])


def _suits(needs: frozenset[str], node: Node) -> bool:
    return not needs or not needs.isdisjoint(node.properties) or node.class_name in needs
