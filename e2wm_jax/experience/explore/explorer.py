"""Random exploration: seeded episodes of actions that the world accepts.

``carry`` makes what counting questions are about: the character takes objects, carries them to surfaces and puts
them there, in many episodes mostly onto one, with other actions in between. ``track`` makes what tracking questions
are about: three people carry things from room to room (`carriers`). ``uniform`` draws verbs and objects blindly.
"""

import random
from collections.abc import Callable
from typing import Literal, TypeVar

from e2wm_jax.experience.explore.carriers import carry_about
from e2wm_jax.experience.explore.episode import Episode, choice
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.homes.scenes import Node, Scene
from e2wm_jax.worlds.household.rules import VERBS
from e2wm_jax.worlds.household.world import World

State = TypeVar("State")
Style = Literal["carry", "uniform", "track"]

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


def explore(world: World[State], scene: Scene, *, length: int, seed: int, style: Style = "carry") -> list[Step]:
    """One episode of at most ``length`` successful steps; equal arguments, equal steps.

    It is shorter only where nothing more can be done (a character who starts seated cannot walk in vh23). A story of
    style ``track`` has its own length.
    """
    rng = random.Random(seed)
    if style == "track":
        return carry_about(world, scene, rng)
    episode = Episode(world, scene, length, rng)
    play = _STYLES[style](episode)
    failures = 0
    while not episode.over and failures < _ATTEMPTS:
        before = len(episode.steps)
        play()
        failures = failures + 1 if len(episode.steps) == before else 0
    return episode.steps


def _carry(episode: Episode[State]) -> Callable[[], None]:
    """Errands: fetch one or two objects, put them somewhere; many go to the episode's own surface, how many depends on
    the episode, so that from none to five things end up there."""
    rng = episode.rng
    surfaces = [node for node in episode.objects if _is_surface(node)]
    portable = [node for node in episode.objects if "GRABBABLE" in node.properties]
    favorite = choice(rng, surfaces) if surfaces else None
    loyalty = rng.choice((0.3, 0.6, 1.0))
    delivered: list[tuple[Node, Node]] = []

    def errand() -> None:
        if rng.random() < 0.3 or not portable or favorite is None:
            return _noise(episode)
        surface = favorite if rng.random() < loyalty else choice(rng, surfaces)
        things = [choice(rng, portable) for _ in range(rng.choice((1, 1, 2)))]
        things = [thing for thing in things if thing.id != surface.id and (thing, surface) not in delivered]
        needed = 2 + 3 * len(things)
        fetched = [
            thing for thing in things if episode.length - len(episode.steps) >= needed and _fetch(episode, thing)
        ]
        if not fetched:
            return None
        if rng.random() < 0.3:
            _noise(episode)
        if episode.do("Walk", surface):
            if rng.random() < 0.5:
                episode.do("Find", surface)
            for thing in fetched:
                if episode.do("PutBack", thing, surface):
                    delivered.append((thing, surface))
        return None

    return errand


def _is_surface(node: Node) -> bool:
    return not node.properties.isdisjoint({"SURFACES", "SITTABLE", "LIEABLE"}) and "GRABBABLE" not in node.properties


def _fetch(episode: Episode[State], thing: Node) -> bool:
    """Go and take the thing, out of what it is in. With both hands full something is put down first."""
    held = episode.held()
    if thing in held:
        return True
    if len(held) == 2 and not episode.do("Drop", episode.rng.choice(held)):
        return False
    return episode.take(thing)


def _noise(episode: Episode[State]) -> None:
    """One harmless action on something near, or a walk."""
    rng = episode.rng
    near = [episode.scene.nodes[node] for node in _near(episode)]
    verb = VERBS[rng.choice(_NOISE).upper()]
    fitting = [node for node in near if _suits(verb.needs[0], node)]
    done = fitting and rng.random() >= 0.25 and episode.do(verb.name, choice(rng, fitting))
    if not done and episode.objects:
        episode.do(rng.choice(("Walk", "Run")), choice(rng, episode.objects))


def _uniform(episode: Episode[State]) -> Callable[[], None]:
    """A verb, then objects that may suit it: half the time from those within reach."""
    rng = episode.rng

    def draw() -> None:
        verb = rng.choice(_SAMPLED)
        pool = [episode.scene.nodes[node] for node in _near(episode)] if rng.random() < 0.5 else episode.objects
        options = [[node for node in pool if _suits(needs, node)] for needs in verb.needs]
        if verb.name in ("Walk", "Run"):
            options = [list(episode.scene.nodes.values())]
        if all(options):
            episode.do(verb.name, *(choice(rng, nodes) for nodes in options))

    return draw


_STYLES: dict[str, Callable[..., Callable[[], None]]] = {"carry": _carry, "uniform": _uniform}


def _near(episode: Episode[State]) -> list[int]:
    """What the character is close to, itself and rooms left out, sorted."""
    known = {node.id for node in episode.objects}
    return sorted(known.intersection(episode.world.targets(episode.state, episode.scene.character.id, "CLOSE")))


def _suits(needs: frozenset[str], node: Node) -> bool:
    return not needs or not needs.isdisjoint(node.properties) or node.class_name in needs
