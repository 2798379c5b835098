"""Made-up households: endlessly many scenes like VirtualHome's, each from a seed (`e2wm collect --scene procedural`).

A household has four to eight rooms in a connected plan, always the four of VirtualHome's scenes among them. A room
consists of parts, a few square meters of floor, ceiling and wall with the furniture that stands together there
(`catalogue.PARTS`) and the objects on and in it; what belongs to one part is CLOSE to each other. What a missing room
would hold stands elsewhere: an oven in the dining room, a television in the home office, as in VirtualHome.
"""

import random
from collections.abc import Iterable
from itertools import combinations, pairwise

from e2wm_jax.worlds.household.changes import Edge
from e2wm_jax.worlds.household.graph import CHARACTER, Node, Scene
from e2wm_jax.worlds.household.homes.catalogue import OBJECTS, PARTS, PROPERTIES, Piece

PROCEDURAL = "procedural:"  # + seed: the name of a household
LARGEST = 300  # nodes
_ROOMS = ("bathroom", "bedroom", "dining_room", "home_office")
_FURTHER_ROOMS = {"kitchen": 0.9, "hallway": 0.9, "living_room": 0.6, "bedroom": 0.35, "bathroom": 0.15}
_MOST_ROOMS = 8
_STAND_IN = {"kitchen": "dining_room", "living_room": "home_office"}
_FEATURES = ("television", "computer", "drawing", "wall_clock")  # what other things are said to be FACING
_ON_WALLS = ("bathroom_cabinet", "cupboard", "curtain", "drawing", "light", "powersocket", "stovefan", "walllamp")
_HUNG = frozenset({*_ON_WALLS, "wallshelf", "wall_clock", "window"})
_LIT = frozenset({"light", "floor_lamp", "tablelamp"})
_CATEGORIES = {"floor": "Floor", "ceiling": "Ceiling", "wall": "Walls", "door": "Doors", "doorjamb": "Doors"}
_RESERVE = 12  # nodes that are added after the objects: doors and the character


class _Part:
    """A part of a room under construction."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.members: list[int] = []


class _House:
    """A scene under construction. Ids count from 1."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"household:{seed}")
        self.nodes: dict[int, Node] = {}
        self.edges: dict[Edge, None] = {}
        self.parts: dict[int, list[_Part]] = {}  # by room

    def add(self, name: str, category: str, properties: frozenset[str], states: frozenset[str]) -> int:
        number = len(self.nodes) + 1
        self.nodes[number] = Node(number, name, category, properties, states)
        return number

    def relate(self, source: int, relation: str, target: int) -> None:
        self.edges[source, relation, target] = None

    def close(self, one: int, other: int) -> None:
        self.relate(one, "CLOSE", other)
        self.relate(other, "CLOSE", one)

    def add_room(self, name: str) -> int:
        room = self.add(name, "Rooms", frozenset(), frozenset({"CLEAN"}))
        self.parts[room] = []
        return room

    def add_thing(self, name: str, part: _Part) -> int:
        """A node in the part's room that belongs to the part; ON or INSIDE nothing yet."""
        properties = PROPERTIES[name]
        category = _CATEGORIES.get(name, "placable_objects" if "GRABBABLE" in properties else "Furniture")
        number = self.add(name, category, properties, _states(name, properties, self.rng))
        self.relate(number, "INSIDE", part.room)
        part.members.append(number)
        return number

    def named(self, names: str | Iterable[str], members: Iterable[int]) -> list[int]:
        wanted = {names} if isinstance(names, str) else set(names)
        return [member for member in members if self.nodes[member].class_name in wanted]

    def furnish(self, room: int, pieces: list[Piece]) -> None:
        """Add a part with its floor, walls and ceiling and the furniture."""
        part = _Part(room)
        self.parts[room].append(part)
        floors = [self.add_thing("floor", part) for _ in range(self.rng.choice((1, 2)))]
        walls = [self.add_thing("wall", part) for _ in range(self.rng.choice((1, 2)))]
        self.relate(self.add_thing("ceiling", part), "ON", walls[0])
        fittings = [Piece("light", 1.0 if len(self.parts[room]) == 1 else 0.0), Piece("ceilinglamp", 0.6)]
        for piece in (*fittings, *pieces):
            for _ in range(self._number(piece)):
                if piece.place is not None:
                    self.put(piece, part.room, part.members)
                    continue
                thing = self.add_thing(piece.class_name, part)
                self.relate(thing, "ON", self.rng.choice(walls if piece.class_name in _HUNG else floors))

    def _number(self, piece: Piece) -> int:
        return self.rng.randint(1, piece.most) if self.rng.random() < piece.likely else 0

    def put(self, piece: Piece, room: int, members: list[int]) -> None:
        """Add an object where it belongs, or on some furniture of the room where that is missing."""
        assert piece.place is not None
        places, relation = self.named(piece.place, members), piece.relation
        if not places:
            places, relation = [member for member in members if self._is_support(member)], "ON"
        place = self.rng.choice(places)
        part = next(part for part in self.parts[room] if place in part.members)
        self.relate(self.add_thing(piece.class_name, part), str(relation), place)

    def _is_support(self, member: int) -> bool:
        node = self.nodes[member]
        return "SURFACES" in node.properties and "GRABBABLE" not in node.properties and node.class_name != "mousepad"

    def equip(self, contents: Iterable[tuple[int, Piece]]) -> None:
        """Add objects to furnished rooms, the more likely ones first, as many as a household may have."""
        furniture = {room: [member for part in parts for member in part.members] for room, parts in self.parts.items()}
        for room, piece in sorted(contents, key=lambda item: -item[1].likely):
            if len(self.nodes) < LARGEST - _RESERVE and self.rng.random() < piece.likely:
                self.put(piece, room, furniture[room])

    def connect(self, one: int, other: int) -> None:
        """A door between two rooms; it stands in the first."""
        part = self.parts[one][0]
        door = self.add_thing("door" if self.rng.random() < 0.7 else "doorjamb", part)
        self.relate(door, "ON", self.rng.choice(self.named("floor", part.members)))
        self.relate(door, "BETWEEN", one)
        self.relate(door, "BETWEEN", other)
        for floor in self.named("floor", self.parts[other][0].members):
            self.close(door, floor)

    def arrange(self, room: int) -> None:
        """What is near to what in a room, and what looks towards the television or a picture."""
        for part in self.parts[room]:
            for one, other in combinations(part.members, 2):
                self.close(one, other)
        for before, after in pairwise(self.parts[room]):
            for one in self.named("floor", before.members):
                for other in self.named("floor", after.members):
                    self.close(one, other)
        for own in self.parts[room]:
            for feature in self.named(_FEATURES, own.members):
                for part in self.parts[room]:
                    for member in part.members:
                        if member != feature and (part is own or self.rng.random() < 0.3):
                            self.relate(member, "FACING", feature)

    def populate(self) -> None:
        """Someone who lives here, standing somewhere."""
        room = self.rng.choice(list(self.parts))
        part = self.rng.choice(self.parts[room])
        character = self.add(CHARACTER, "Characters", frozenset(), frozenset())
        self.relate(character, "INSIDE", room)
        for member in part.members:
            if self.rng.random() < 0.5:
                self.close(character, member)
        for feature in self.named(_FEATURES, part.members):
            self.relate(character, "FACING", feature)


def household(seed: int) -> Scene:
    """The household of a seed, named ``procedural:<seed>``: 150 to 300 nodes, every one but the rooms directly in
    exactly one room and in at most one further container, CLOSE symmetric, every room reachable through open doors.
    """
    house = _House(seed)
    rng = house.rng
    further = [name for name, likely in _FURTHER_ROOMS.items() if rng.random() < likely]
    names = [*_ROOMS, *further][:_MOST_ROOMS]
    rooms = {house.add_room(name): name for name in names}
    contents = {room: [name] for room, name in rooms.items()}
    for missing in _STAND_IN.keys() - set(names):
        contents[1 + names.index(_STAND_IN[missing])].append(missing)
    for room, kinds in contents.items():
        for pieces in (pieces for kind in sorted(kinds) for pieces in PARTS[kind]):
            house.furnish(room, pieces)
    house.equip((room, piece) for room, kinds in contents.items() for kind in sorted(kinds) for piece in OBJECTS[kind])
    for one, other in _plan(rooms, rng):
        house.connect(one, other)
    for room in rooms:
        house.arrange(room)
    house.populate()
    return Scene(f"{PROCEDURAL}{seed}", house.nodes, tuple(house.edges))


def _plan(rooms: dict[int, str], rng: random.Random) -> list[tuple[int, int]]:
    """Which rooms have a door between them: a tree, mostly around the hallway, and sometimes a way round."""
    center = next(room for wanted in ("hallway", "dining_room") for room, name in rooms.items() if name == wanted)
    others = [room for room in rooms if room != center]
    rng.shuffle(others)
    doors: list[tuple[int, int]] = []
    for position, room in enumerate(others):
        doors.append((room, center if position == 0 or rng.random() < 0.6 else rng.choice(others[:position])))
    possible = [pair for pair in combinations(rooms, 2) if pair not in doors and pair[::-1] not in doors]
    if possible and rng.random() < 0.4:
        doors.append(rng.choice(possible))
    return doors


def _states(name: str, properties: frozenset[str], rng: random.Random) -> frozenset[str]:
    """One state of each pair that the properties allow. What is on is plugged in and closed."""
    states = {"CLEAN" if rng.random() < 0.8 else "DIRTY"}
    on = "HAS_SWITCH" in properties and rng.random() < (0.6 if name in _LIT else 0.1)
    if "HAS_SWITCH" in properties:
        states.add("ON" if on else "OFF")
    if "HAS_PLUG" in properties:
        states.add("PLUGGED_IN" if on or rng.random() < 0.9 else "PLUGGED_OUT")
    if name == "door":  # as in VirtualHome's scenes; some dialects let nobody through a closed door
        states.add("OPEN")
    elif "CAN_OPEN" in properties:
        states.add("CLOSED" if on or rng.random() < 0.85 else "OPEN")
    return frozenset(states)
