"""The engine for accelerators: against the compiled one, step by step, and its masks against trying every line."""

import gzip
import json
import os
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import renumbered

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.arrays import CLOSE, INSIDE, ON, Tables, tables_of
from e2wm_jax.worlds.household.batched import step as batched_step
from e2wm_jax.worlds.household.graph import Scene, parse_graph
from e2wm_jax.worlds.household.homes import robothow, scenes
from e2wm_jax.worlds.household.native import edges as native_edges
from e2wm_jax.worlds.household.native import legal as native_legal
from e2wm_jax.worlds.household.native import step as native_step
from e2wm_jax.worlds.household.native import tables as native_tables
from e2wm_jax.worlds.household.rules import DIALECTS, RULES, VERB_INDEX

WORLD = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).parent / "world"
GOLDENS = {"vh23": "public", "vh19": "vh19_public", "e2wm": "e2wm_public"}
# Drawn more often than the others
WANTED = ("GRAB", "PUTBACK", "PUTIN", "PUTOBJBACK", "WALK", "FIND", "OPEN", "DROP", "SIT", "POUR", "PUTON")
pytestmark = pytest.mark.usefixtures("quick_compilation")
BATCH = 64  # also the length of an episode of random lines
SIZES = batched_step.Sizes(nodes=352, slots=64, seats=32, rooms=8, doors=16)  # one compilation for all scenes


class Played(NamedTuple):
    """Lines as the compiled engine executes them, one by one."""

    before: np.ndarray  # [n, size]
    lines: np.ndarray  # [n, 3] verb, x, y
    after: np.ndarray  # [n, size]
    outcomes: np.ndarray  # [n, 3] succeeds, check, note


def members(words: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little"))


def random_lines(tables: Tables, vector: np.ndarray, rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """Endless lines, blind and among what is near or held. ``vector`` is the present state, changed from outside."""
    layout = tables.layout
    while True:
        close = members(vector[layout.close : layout.facing]).tolist()
        held = [int(thing) - 1 for thing in vector[layout.hands : layout.memory] if thing]
        verb = VERB_INDEX[rng.choice(WANTED)] if rng.random() < 0.4 else rng.randrange(len(RULES))

        def thing(held: list[int] = held, close: list[int] = close) -> int:
            among = rng.random()
            if held and among < 0.3:
                return rng.choice(held)
            return rng.choice(close) if close and among < 0.85 else rng.randrange(tables.nodes)

        yield verb, thing(), thing()


def play(tables: Tables, lines: Iterator[tuple[int, int, int]], vector: np.ndarray, count: int) -> Played:
    """Execute so many lines on ``vector``, in place."""
    flat = native_tables.native_tables(tables)
    before, done, after, outcomes = [], [], [], []
    for line, _ in zip(lines, range(count), strict=False):
        before.append(vector.copy())
        outcomes.append(native_step.step(flat, vector, *line))
        done.append(line)
        after.append(vector.copy())
    return Played(np.stack(before), np.array(done), np.stack(after), np.array(outcomes, np.int32))


@lru_cache
def compiled() -> Any:
    """Step and, where they are wanted, masks of a batch of states of one scene; compiled once for each dialect."""

    def step_and_legal(
        tables: batched_step.DeviceTables, states: batched_step.State, actions: batched_step.Action, wanted: jax.Array
    ) -> Any:
        masks = jax.vmap(batched_step.legal, (None, 0))
        nothing = jax.tree.map(lambda mask: jnp.zeros(mask.shape, mask.dtype), jax.eval_shape(masks, tables, states))
        new, outcome = jax.vmap(batched_step.step, (None, 0, 0))(tables, states, actions)
        return new, outcome, jax.lax.cond(wanted, masks, lambda *_: nothing, tables, states)

    return jax.jit(step_and_legal)


def on_device(
    tables: Tables, played: Played, sizes: batched_step.Sizes = SIZES, *, masks: bool = True
) -> tuple[np.ndarray, ...]:
    """(vectors after, outcomes, masks of one thing, of two) of all lines, each from the state given."""
    scene = batched_step.device_tables(tables, sizes)
    found = []
    for start in range(0, len(played.lines), BATCH):
        chosen = np.minimum(np.arange(start, start + BATCH), len(played.lines) - 1)
        states = batched_step.state_of(played.before[chosen], tables.layout, nodes=sizes.nodes, slots=sizes.slots)
        actions = batched_step.Action(*played.lines[chosen].T.astype(np.int32))
        new, outcome, legal = compiled()(scene, states, actions, masks)
        one, two = (np.asarray(mask)[..., : tables.words] for mask in legal)
        found.append((batched_step.vector_of(new, tables.layout), np.stack(outcome, -1), one, two))
    return tuple(np.concatenate(parts)[: len(played.lines)] for parts in zip(*found, strict=True))


def differing(tables: Tables, played: Played, after: np.ndarray, outcomes: np.ndarray) -> list[str]:
    wrong = (after != played.after).any(1) | (outcomes != played.outcomes).any(1)
    return [f"{RULES[verb].name} {x} {y}" for verb, x, y in played.lines[wrong]]


def tried(tables: Tables, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks as `native.legal.legal` describes them, from trying every line."""
    flat, character = native_tables.native_tables(tables), tables.character
    held = [int(thing) - 1 for thing in vector[tables.layout.hands : tables.layout.memory]]

    def works(verb: int, x: int, y: int) -> bool:
        return bool(native_step.advance(flat, vector.copy(), verb, x, y))

    def mask(lines: list[tuple[int, int, int]], which: list[int]) -> np.ndarray:
        flags = np.zeros(32 * tables.words, np.uint8)
        flags[which] = [works(*line) for line in lines]
        return np.packbits(flags, bitorder="little").view(np.uint32)

    every, none = list(range(tables.nodes)), np.zeros(tables.words, np.uint32)
    one, two = [], []
    for verb, rule in enumerate(RULES):
        nodes = {0: [character], 1: every, 2: []}[rule.arity]
        one.append(mask([(verb, node, 0) for node in nodes], nodes))
        if rule.arity == 2:
            hands = [thing if hand == 0 or thing != held[0] else -1 for hand, thing in enumerate(held)]
            two.append([mask([(verb, x, y) for y in every], every) if x >= 0 else none for x in hands])
    return np.stack(one), np.array(two)


def graph(nodes: list[tuple[int, str, str, list[str], list[str]]], edges: list[tuple[int, str, int]]) -> Scene:
    keys = ("id", "class_name", "category", "properties", "states")
    return parse_graph(
        {
            "nodes": [dict(zip(keys, node, strict=True)) for node in nodes],
            "edges": [{"from_id": a, "relation_type": r, "to_id": b} for a, r, b in edges],
        },
        "house",
    )


def nested() -> Scene:
    """A ring in a purse in a bag in a room: only the bag is in it directly."""
    things = ["GRABBABLE", "CAN_OPEN"]
    return graph(
        [
            (1, "kitchen", "Rooms", [], []),
            (2, "bedroom", "Rooms", [], []),
            (3, "character", "Characters", [], []),
            (4, "bag", "Props", [*things, "SURFACES"], ["OPEN"]),
            (5, "purse", "Props", things, ["OPEN"]),
            (6, "ring", "Props", [*things, "CLOTHES"], ["CLOSED"]),
            (7, "picture", "Props", ["GRABBABLE", "LOOKABLE"], []),
            (8, "chair", "Props", ["GRABBABLE", "SITTABLE"], []),
            (9, "door", "Doors", ["CAN_OPEN"], ["OPEN"]),
        ],
        [
            (3, "INSIDE", 1),
            (4, "INSIDE", 1),
            (5, "INSIDE", 4),
            (6, "INSIDE", 5),
            (7, "INSIDE", 2),
            (8, "INSIDE", 1),
            (3, "FACING", 7),
            (8, "FACING", 7),
            (9, "INSIDE", 1),
            (9, "BETWEEN", 1),
            (9, "BETWEEN", 2),
        ],
    )


def agree(scene: Scene, dialect: str, *, lines: int, seed: int, tries: int, sizes: batched_step.Sizes = SIZES) -> None:
    """Random lines: the same states, outcomes and masks everywhere, and some of the masks tried out."""
    tables, rng = tables_of(scene, dialect), random.Random(f"{seed}")
    flat = native_tables.native_tables(tables)
    episodes = []
    for _ in range(lines // BATCH):
        vector = tables.start.copy()
        episodes.append(play(tables, random_lines(tables, vector, rng), vector, BATCH))
    played = Played(*(np.concatenate(parts) for parts in zip(*episodes, strict=True)))
    after, outcomes, one, two = on_device(tables, played, sizes)
    assert differing(tables, played, after, outcomes) == []
    assert 0.1 < played.outcomes[:, 0].mean() < 0.9
    ours = np.zeros_like(one[0]), np.zeros_like(two[0])
    for index, state in enumerate(played.before):
        native_legal.legal(flat, state, *ours)
        np.testing.assert_array_equal(ours[0], one[index])
        np.testing.assert_array_equal(ours[1], two[index])
    for index in rng.sample(range(lines), tries):
        expected = tried(tables, played.before[index])
        np.testing.assert_array_equal(one[index], expected[0])
        np.testing.assert_array_equal(two[index], expected[1])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_random_lines_and_masks_are_those_of_the_compiled_engine(dialect):
    for seed in range(3):
        agree(scenes.household(seed), dialect, lines=6 * BATCH, seed=seed, tries=2)


def test_ids_may_be_longer_than_the_numbers_of_an_accelerator():
    agree(renumbered(scenes.household(0), lambda number: number + (1 << 70)), "vh23", lines=2 * BATCH, seed=0, tries=1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_in_given_scenes_too(dialect):
    path = WORLD / "scenes" / "TrimmedTestScene1_graph.json.gz"
    if not path.is_file():
        pytest.skip(f"no scenes in {path.parent}; set E2WM_DATA")
    agree(scenes.load(str(path)), dialect, lines=8 * BATCH, seed=7, tries=3)


def test_containers_in_containers_are_followed_to_their_room():
    scene = nested()
    tables = tables_of(scene, "vh23")
    assert not batched_step.device_tables(tables).tidy
    agree(scene, "vh23", lines=6 * BATCH, seed=3, tries=20, sizes=SIZES._replace(nodes=32, slots=32, rooms=2, doors=1))


# Reference trajectories


def golden_lines(record: dict[str, Any], tables: Tables, scene: Scene) -> list[tuple[int, int, int] | None]:
    """The lines by number; None for one about a node that does not exist, which no engine is asked."""
    number = {node: index for index, node in enumerate(scene.nodes)}
    lines: list[tuple[int, int, int] | None] = []
    for step in record["steps"]:
        action = parse_action(step["a"])
        nodes = [number.get(thing.id) for thing in action.things]
        x, y = (*(node or 0 for node in nodes), 0, 0)[:2]
        lines.append(None if None in nodes else (VERB_INDEX[action.verb.upper()], x, y))
    return lines


class Compared(NamedTuple):
    """Reference trajectories of a dialect on the device."""

    records: int
    steps: int
    wrong: list[str]  # trajectory and line
    unexplained: list[str]  # those of them for which SPEC.md section 4 is no reason


def compared(every: int) -> dict[str, Compared]:
    """Every so-manieth reference trajectory of each dialect there is, those of one scene together."""
    if not robothow.has_robothow():
        pytest.skip("virtualhome-eval is not installed: pip install --no-deps virtualhome-eval==0.1.1")
    records = []
    for dialect, name in GOLDENS.items():
        path = WORLD / "goldens" / f"{name}.jsonl.gz"
        if path.is_file():
            with gzip.open(path, "rt") as file:
                records += [(dialect, json.loads(line)) for index, line in enumerate(file) if index % every == 0]

    @lru_cache(maxsize=1)
    def unpatched(init: str) -> Scene:
        kind, _, name = init.partition(":")
        return scenes.load(init if kind == "robothow" else str(WORLD / f"scenes/TrimmedTestScene{name}_graph.json.gz"))

    found: dict[str, Compared] = {}
    for dialect, record in sorted(records, key=lambda pair: pair[1]["init"]):
        scene = scenes.patched(unpatched(record["init"]), record.get("patch") or {})
        known = found.get(dialect, Compared(0, 0, [], []))
        steps, wrong, unexplained = compare(dialect, record, scene)
        found[dialect] = Compared(
            known.records + 1, known.steps + steps, known.wrong + wrong, known.unexplained + unexplained
        )
    return found


def compare(dialect: str, record: dict[str, Any], scene: Scene) -> tuple[int, list[str], list[str]]:
    """(number of lines, lines that go otherwise than on the compiled engine, those that have no reason to)."""
    tables = tables_of(scene, dialect)
    asked = [(i, line) for i, line in enumerate(golden_lines(record, tables, scene)) if line]
    played = play(tables, iter(line for _, line in asked), tables.start.copy(), len(asked))
    expected = [record["steps"][index]["ok"] for index, _ in asked]
    assert played.outcomes[:, 0].tolist() == expected, record["id"]
    after, outcomes, _, _ = on_device(tables, played, masks=False)
    wrong = [f"{record['id']}: {line}" for line in differing(tables, played, after, outcomes)]
    unexplained = [
        f"{record['id']}: {index}"
        for index in np.flatnonzero((after != played.after).any(1))
        if not is_other_place(tables, played, int(index), after[index])
    ]
    return len(asked), wrong, unexplained


def check_goldens(found: dict[str, Compared], dialect: str, *, misses: int) -> None:
    """``misses``: steps at most in which the first of a set is another."""
    if dialect not in found:
        pytest.skip(f"no reference trajectories of {dialect} in {WORLD / 'goldens'}; set E2WM_DATA")
    records, steps, wrong, unexplained = found[dialect]
    assert steps > 14 * records
    assert len(wrong) <= misses, wrong
    assert not unexplained


@pytest.fixture(scope="module")
def some_compared() -> dict[str, Compared]:
    return compared(every=60)


@pytest.fixture(scope="module")
def all_compared() -> dict[str, Compared]:
    return compared(every=1)


def is_other_place(tables: Tables, played: Played, index: int, after: np.ndarray) -> bool:
    """Whether a line took up a thing that lay at several places of one kind, and only the place that was noted is
    another of these: what SPEC.md section 4 lets an engine miss."""
    flat, layout = native_tables.native_tables(tables), tables.layout
    verb, x, _ = played.lines[index]
    row = np.zeros(tables.words, np.uint32)
    places: set[int] = set()
    for relation in (ON, INSIDE, CLOSE):
        native_edges.targets(flat, played.before[index], relation, x, row)
        places = places or set(members(row).tolist()) - set(members(tables.rooms).tolist())
    expected = played.after[index]
    noted = {int(vector[layout.memory + x] >> 2) for vector in (after, expected)}
    # The note is 1 + relation + 4 * place; the character is then near that place, and near the other one or not.
    same = np.ones(len(after), bool)
    same[layout.memory + x] = False
    same[layout.close : layout.facing] = False
    near = {*members(after[layout.close : layout.facing] ^ expected[layout.close : layout.facing]).tolist()}
    return (
        RULES[verb].name == "Grab"
        and len(noted) == 2
        and noted <= places
        and near <= noted
        and bool((after[same] == expected[same]).all())
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reference_trajectories(dialect, some_compared):
    check_goldens(some_compared, dialect, misses=0)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_all_reference_trajectories(dialect, all_compared):
    check_goldens(all_compared, dialect, misses=5)


# Batches, devices, random play


def test_random_play_on_eight_devices_is_legal_and_needs_no_communication():
    """In scenes of two sizes, each environment with its own tables."""
    count, length = 16, 12
    chosen = [tables_of(scenes.household(seed), "e2wm") for seed in (1, 5)] * (count // 2)
    batch = batched_step.stacked_tables(chosen)
    assert chosen[0].words != chosen[1].words
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))

    def play_one(scene: batched_step.DeviceTables, key: jax.Array) -> tuple[batched_step.State, batched_step.Action]:
        return batched_step.rollout(scene, scene.start, key, length)

    play_all = jax.jit(jax.vmap(play_one), in_shardings=split, out_shardings=split)
    inputs = jax.device_put((batch, jax.random.split(jax.random.key(3), count)), split)
    program = play_all.lower(*inputs).compile()
    text = program.as_text()
    assert not [word for word in ("all-reduce", "all-gather", "all-to-all", "collective") if word in text]
    played = program(*inputs)
    assert len(played[0].close.sharding.device_set) == 8
    last, actions = jax.device_get(played)

    seen = set()
    for index, tables in enumerate(chosen):
        vector, flat = tables.start.copy(), native_tables.native_tables(tables)
        for line in zip(*(part[index].tolist() for part in actions), strict=True):
            assert native_step.advance(flat, vector, *line)
            seen.add(RULES[line[0]].name)
        state = jax.tree.map(lambda leaf, index=index: leaf[index], last)
        np.testing.assert_array_equal(vector, batched_step.vector_of(state, tables.layout))
    assert len(seen) > 5


def test_every_legal_line_is_drawn_equally_often():
    one = np.zeros((len(RULES), 2), np.uint32)
    one[3], one[9], one[40, 1] = (0x80000001, 0), (0, 1), 0x00F00000
    two = np.zeros((3, 2, 2), np.uint32)
    two[0, 1, 1], two[2, 0, 0] = 2, 0x7
    legal = batched_step.Legal(jnp.asarray(one), jnp.asarray(two))
    put, _, pour = batched_step.TWO_THINGS
    lines = {(3, 0, 0), (3, 31, 0), (9, 32, 0), *((40, 52 + i, 0) for i in range(4)), (put, 35, 33)}
    lines |= {(pour, 17, y) for y in range(3)}
    start = batched_step.device_tables(tables_of(nested(), "vh23")).start
    state = start._replace(hands=jnp.array((18, 36), jnp.uint32))
    draw = jax.jit(jax.vmap(batched_step.random_legal, (0, None, None)))
    keys = jax.random.split(jax.random.key(0), 11_000)
    drawn = np.stack(draw(keys, state, legal), -1)
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {*map(tuple, found.tolist())} == lines
    assert np.abs(counts - 1000).max() < 5 * 1000**0.5
    nothing = jax.tree.map(jnp.zeros_like, legal)
    assert not np.any(draw(keys, state, nothing))  # Walk to node 0


# Converting


def test_vectors_and_states_are_the_same():
    tables = tables_of(scenes.household(1), "vh23")
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 2**32, (2, 3, tables.layout.size), dtype=np.uint32)
    vectors[..., tables.layout.count] %= 20
    for nodes, slots in ((0, 96), (512, 128)):
        state = batched_step.state_of(vectors, tables.layout, nodes=nodes, slots=slots)
        assert state.wiped.shape == (2, 3, 4, max(tables.words, nodes // 32))
        assert state.edges.shape[-1] == slots
        np.testing.assert_array_equal(batched_step.vector_of(state, tables.layout), vectors)


def test_edges_beyond_the_slots_show_for_good():
    tables = tables_of(scenes.household(1), "vh23")
    played = play(tables, random_lines(tables, vector := tables.start.copy(), random.Random(1)), vector, BATCH)
    full = played.before.copy()
    thing = int(members(tables.kinds[0])[0])
    full[:, tables.layout.edges :] = INSIDE << 24 | thing << 12 | thing
    full[:, tables.layout.count] = SIZES.slots + 1
    after, *_ = on_device(tables, played._replace(before=full))
    assert (after[:, tables.layout.count] == SIZES.slots + 1).all()


def test_what_the_engine_cannot_express_is_refused():
    tables = tables_of(scenes.household(1), "vh23")
    with pytest.raises(InputError, match="does not fit into Sizes"):
        batched_step.device_tables(tables, SIZES._replace(nodes=32))
    with pytest.raises(InputError, match="different dialects"):
        batched_step.stacked_tables([tables, tables_of(scenes.household(1), "e2wm")])
    rooms = [(number, "kitchen", "Rooms", [], []) for number in range(1, 34)]
    character = (40, "character", "Characters", [], [])
    with pytest.raises(InputError, match="33 rooms: this engine takes 32"):
        batched_step.device_tables(tables_of(graph([*rooms, character], [(40, "INSIDE", 1)]), "vh23"))
    rooms[0] = (1, "kitchen", "Rooms", ["GRABBABLE"], [])
    with pytest.raises(InputError, match="a room or the character can be grabbed"):
        batched_step.device_tables(tables_of(graph([rooms[0], character], [(40, "INSIDE", 1)]), "vh23"))
