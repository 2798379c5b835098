"""`e2wm bench world`: steps per second of every engine on the same lines, against VirtualHome's own executor."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from e2wm_jax.bench.harness import check_least, in_turn, print_table, seconds_of
from e2wm_jax.bench.process import Answer
from e2wm_jax.bench.settings import WorldBenchSettings
from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.arrays import tables_of
from e2wm_jax.worlds.household.batched import step as batched_step
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native import legal as native_legal
from e2wm_jax.worlds.household.native import step as native_step
from e2wm_jax.worlds.household.native import tables as native_tables
from e2wm_jax.worlds.household.native.jit import jit
from e2wm_jax.worlds.household.native.world import ArrayWorld
from e2wm_jax.worlds.household.oracle.virtualhome import VERSION, VirtualHome, load_rules
from e2wm_jax.worlds.household.rules import RULES, VERB_INDEX

# (engine, environments, whether with legal masks) -> lines that are played, and how.
Ways = dict[tuple[str, int, bool], tuple[int, Callable[[], Any]]]
_LOOKS = ("LookAt_Short", "LookAt_Long")  # executors crash on them


@dataclass(frozen=True)
class _Lines:
    """Episodes that all engines play. E episodes of L lines."""

    actions: list[list[Action]]
    numbers: np.ndarray  # [E, L, 3] int32: verb, x, y


def run(settings: WorldBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints: for each engine ``steps_per_second`` and its ``ratio`` to the
    executor of virtualhome, with how many ``environments`` and whether each step came with its ``legal`` masks.

    Raises:
        InputError: for settings out of range, a scene that cannot be loaded, or if virtualhome is not installed.
    """
    check_least(settings, slots=1, episodes=1, length=1, rounds=1, environments=1)
    scene = scenes.load(settings.scene)
    lines = _draw(scene, settings)
    total = settings.episodes * settings.length
    ways: Ways = {
        (f"virtualhome {VERSION}, as published", 1, False): (total, _published(scene, lines)),
        ("engine virtualhome", 1, False): (total, _world(VirtualHome(), scene, lines)),
        ("engine array, with records", 1, False): (total, _world(ArrayWorld(settings.dialect), scene, lines)),
        **_native(scene, settings, lines),
    }
    for count in settings.environments:
        for legal in (False, True):
            play = _batched(scene, settings, lines, count, legal)
            ways[f"array on {jax.default_backend()} by JAX", count, legal] = count * settings.length, play
    measures = {str(key): partial(_measured, play) for key, (_, play) in ways.items()}
    answers = in_turn(measures, settings.rounds, "bench world")
    fastest = (min(answer["seconds"] for answer in each) for each in answers.values())
    paces = {key: steps / seconds for (key, (steps, _)), seconds in zip(ways.items(), fastest, strict=True)}
    baseline = next(iter(paces.values()))
    return {
        "scene": settings.scene,
        "dialect": settings.dialect,
        "nodes": len(scene.nodes),
        "lines": total,
        "device": jax.devices()[0].device_kind,
        "engines": [
            {
                "engine": name,
                "environments": count,
                "legal": legal,
                "steps_per_second": round(pace, 1),
                "ratio": round(pace / baseline, 2),
            }
            for (name, count, legal), pace in paces.items()
        ],
    }


def _measured(play: Callable[[], Any]) -> Answer:
    return {"seconds": seconds_of(play)}


def show(result: dict[str, Any]) -> None:
    """The report as a table on stdout."""
    print(f"{result['lines']} lines in {result['scene']} ({result['nodes']} nodes), dialect {result['dialect']}")
    rows = [
        [row["engine"], row["environments"], "yes" if row["legal"] else "", row["steps_per_second"], row["ratio"]]
        for row in result["engines"]
    ]
    print_table(["engine", "environments", "legal masks", "steps/s", "ratio"], rows)


def _draw(scene: Scene, settings: WorldBenchSettings) -> _Lines:
    """Random lines, half of them about what is near or held: about half succeed, as in the reference trajectories."""
    rng = np.random.default_rng(settings.seed)
    world = ArrayWorld(settings.dialect)
    nodes = list(scene.nodes.values())
    verbs = [rule for rule in RULES if rule.name not in _LOOKS]
    often = [RULES[VERB_INDEX[name]] for name in ("WALK", "GRAB", "PUTBACK", "OPEN", "FIND")]
    number = {node: index for index, node in enumerate(scene.nodes)}
    actions: list[list[Action]] = []
    for _ in range(settings.episodes):
        state, episode = world.initial(scene), []
        for _ in range(settings.length):
            drawn = often if rng.random() < 0.5 else verbs
            rule = drawn[rng.integers(len(drawn))]
            near = [scene.nodes[node] for node in world.targets(state, scene.character.id, "CLOSE")]
            pool = near if near and rng.random() < 0.6 else nodes
            things = [pool[rng.integers(len(pool))] for _ in range(rule.arity)]
            episode.append(Action(rule.name, tuple(Thing(node.class_name, node.id) for node in things)))
            state, _ = world.step(state, episode[-1])
        actions.append(episode)
    numbers = [
        [(VERB_INDEX[a.verb.upper()], *[number[t.id] for t in a.things], *[0] * (2 - len(a.things))) for a in episode]
        for episode in actions
    ]
    return _Lines(actions, np.array(numbers, np.int32))


def _published(scene: Scene, lines: _Lines) -> Callable[[], None]:
    """VirtualHome's executor with its own state."""
    rules = load_rules()
    environment, scripts, execution = rules.environment, rules.scripts, rules.execution
    nodes = [
        {**asdict(node), "properties": sorted(node.properties), "states": sorted(node.states)}
        for node in scene.nodes.values()
    ]
    edges = [{"from_id": a, "relation_type": r, "to_id": b} for a, r, b in scene.edges]
    graph = environment.EnvironmentGraph({"nodes": nodes, "edges": edges})
    scripted = [
        [
            scripts.ScriptLine(
                scripts.Action[action.verb.upper()], [scripts.ScriptObject(t.name, t.id) for t in action.things], 0
            )
            for action in episode
        ]
        for episode in lines.actions
    ]

    def play() -> None:
        for episode in scripted:
            state = environment.EnvironmentState(graph, {}, instance_selection=True)
            for line in episode:
                try:
                    found = execution.ScriptExecutor.call_action_method((line,), state, execution.ExecutionInfo(), 0)
                    state = next(found, None) or state
                except Exception:  # its own defects: the line fails
                    continue

    return play


def _world(world: Any, scene: Scene, lines: _Lines) -> Callable[[], None]:
    start = world.initial(scene)

    def play() -> None:
        for episode in lines.actions:
            state = start
            for action in episode:
                state, _ = world.step(state, action)

    return play


@jit
def _play_natively(T: Any, start: Any, numbers: Any, times: int, with_legal: bool, one: Any, two: Any) -> int:
    """All episodes ``times`` times; returns the number of lines that succeed (and of words of legal masks)."""
    s, done = start.copy(), 0
    for _ in range(times):
        for episode in range(len(numbers)):
            s[:] = start
            for line in range(numbers.shape[1]):
                verb, x, y = numbers[episode, line]
                succeeds, check, _ = native_step.step(T, s, np.int64(verb), np.int64(x), np.int64(y))
                done += succeeds and check < 0
                if with_legal:
                    native_legal.legal(T, s, one, two)
                    done += one[0, 0] & np.uint32(1)
    return done


def _native(scene: Scene, settings: WorldBenchSettings, lines: _Lines) -> Ways:
    """One compiled environment on one core; the lines are repeated, for they would be over too soon."""
    tables = tables_of(scene, settings.dialect)
    flat = native_tables.native_tables(tables)
    one = np.zeros((len(RULES), tables.words), np.uint32)
    two = np.zeros((len(batched_step.TWO_THINGS), 2, tables.words), np.uint32)
    times, total = 50, settings.episodes * settings.length
    ways: Ways = {}
    for legal in (False, True):
        _play_natively(flat, tables.start, lines.numbers, 1, legal, one, two)  # compiles
        play = partial(_play_natively, flat, tables.start, lines.numbers, times, legal, one, two)
        ways["array on one CPU core, compiled", 1, legal] = times * total, play
    return ways


def _batched(
    scene: Scene, settings: WorldBenchSettings, lines: _Lines, count: int, with_legal: bool
) -> Callable[[], None]:
    """``count`` environments at once, all lines in one call."""
    flat = tables_of(scene, settings.dialect)
    tables = batched_step.device_tables(flat, batched_step.sizes_of(flat, slots=settings.slots))
    chosen = np.arange(count) % settings.episodes
    numbers = jax.numpy.asarray(lines.numbers[chosen].transpose(1, 2, 0))  # [L, 3, B]

    @jax.jit
    def play(tables: batched_step.DeviceTables, numbers: jax.Array) -> jax.Array:
        states = jax.tree.map(lambda leaf: jax.numpy.broadcast_to(leaf, (count, *leaf.shape)), tables.start)

        def line(carry: Any, number: jax.Array) -> tuple[Any, None]:
            states, total = carry
            states, outcome = jax.vmap(batched_step.step, (None, 0, 0))(tables, states, batched_step.Action(*number))
            total += outcome.succeeds.sum()
            if with_legal:
                masks = jax.vmap(batched_step.legal, (None, 0))(tables, states)
                total += sum(jax.lax.population_count(leaf).sum().astype(total.dtype) for leaf in masks)
            return (states, total), None

        return jax.lax.scan(line, (states, jax.numpy.int32(0)), numbers)[0][1]

    compiled = play.lower(tables, numbers).compile()
    jax.block_until_ready(compiled(tables, numbers))
    return lambda: jax.block_until_ready(compiled(tables, numbers))
