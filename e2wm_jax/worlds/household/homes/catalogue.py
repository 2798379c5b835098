"""What households are made of: which classes there are, what one can do with them and where they usually stand.

Class names and properties are VirtualHome's (for a few everyday things that it has no class for, the plain word);
furniture and placements follow its scenes. Read by `homes.procedural`.
"""

from dataclasses import dataclass

# One line per kind: its properties, then the classes.
_PROPERTIES = """
: ceiling wall doorjamb walllamp ceilinglamp cpuscreen powersocket stovefan shower knifeblock photoframe wallshelf
: orchid vase closetdrawer window
SURFACES: floor kitchen_counter bathroom_counter tvstand
SURFACES MOVABLE: table coffee_table desk mousepad
SURFACES CAN_OPEN CONTAINERS: bookshelf nightstand filing_cabinet bathroom_cabinet
SURFACES SITTABLE LIEABLE: bed
SURFACES SITTABLE LIEABLE MOVABLE: couch bench
SURFACES SITTABLE LIEABLE MOVABLE GRABBABLE: mat
SURFACES SITTABLE MOVABLE GRABBABLE: chair
SURFACES GRABBABLE MOVABLE: towel_rack shoe_rack tray cutting_board dishrack
SURFACES COVER_OBJECT GRABBABLE MOVABLE: table_cloth
SURFACES LOOKABLE GRABBABLE MOVABLE: board_game
CAN_OPEN: door
CAN_OPEN CONTAINERS: cupboard dresser
CAN_OPEN CONTAINERS MOVABLE: trashcan
CAN_OPEN CONTAINERS SITTABLE: toilet
CAN_OPEN CONTAINERS HAS_SWITCH: dishwasher
CAN_OPEN CONTAINERS HAS_SWITCH HAS_PLUG: freezer oven microwave
CAN_OPEN CONTAINERS HAS_SWITCH HAS_PLUG RECIPIENT: washing_machine
CAN_OPEN CONTAINERS HAS_SWITCH HAS_PLUG RECIPIENT MOVABLE: coffe_maker
CAN_OPEN CONTAINERS GRABBABLE MOVABLE: basket_for_clothes
CAN_OPEN CONTAINERS GRABBABLE MOVABLE COVER_OBJECT RECIPIENT: bag box
CAN_OPEN COVER_OBJECT MOVABLE: curtain
CONTAINERS RECIPIENT: sink
CONTAINERS MOVABLE GRABBABLE: toothbrush_holder
SITTABLE LIEABLE: bathtub
HAS_SWITCH: faucet tablelamp
HAS_SWITCH MOVABLE: floor_lamp
HAS_SWITCH LOOKABLE: computer
HAS_SWITCH HAS_PLUG: light
HAS_SWITCH HAS_PLUG LOOKABLE: television
HAS_SWITCH HAS_PLUG MOVABLE: toaster
HAS_SWITCH HAS_PLUG MOVABLE GRABBABLE: phone vacuum_cleaner hairdryer iron
HAS_SWITCH HAS_PLUG LOOKABLE MOVABLE GRABBABLE: laptop wall_clock alarm_clock
HAS_SWITCH HAS_PLUG CAN_OPEN SURFACES MOVABLE GRABBABLE: stereo dvd_player
HAS_SWITCH HAS_PLUG RECIPIENT MOVABLE GRABBABLE: kettle
HAS_SWITCH MOVABLE GRABBABLE: remote_control candle
HAS_PLUG MOVABLE GRABBABLE: keyboard mouse
LOOKABLE CUTTABLE HAS_PAPER MOVABLE GRABBABLE: drawing
MOVABLE GRABBABLE: pillow hairbrush razor comb sponge pen pencil scissors key wallet fork knife
MOVABLE GRABBABLE: spoon wooden_spoon toy broom mop coin creditcard
HANGABLE MOVABLE GRABBABLE: hanger dustpan
COVER_OBJECT MOVABLE GRABBABLE: towel sheets
COVER_OBJECT HANGABLE MOVABLE GRABBABLE: blanket
COVER_OBJECT HAS_PAPER MOVABLE GRABBABLE: napkin
COVER_OBJECT CUTTABLE HANGABLE HAS_PAPER MOVABLE GRABBABLE: toilet_paper paper_towel
CLOTHES MOVABLE GRABBABLE: shoes glasses headset pajamas clothes
CLOTHES HANGABLE MOVABLE GRABBABLE: clothes_hat clothes_shirt clothes_pants clothes_jacket clothes_scarf clothes_socks
CLOTHES HANGABLE MOVABLE GRABBABLE: slippers
RECIPIENT MOVABLE GRABBABLE: bowl pan bottle toothbrush mop_bucket colander
RECIPIENT POURABLE MOVABLE GRABBABLE: cup mug water_glass measuring_cup
RECIPIENT SURFACES MOVABLE GRABBABLE: plate
RECIPIENT CAN_OPEN MOVABLE GRABBABLE: pot coffee_pot
POURABLE MOVABLE GRABBABLE: laundry_detergent
CREAM MOVABLE GRABBABLE: soap
CREAM POURABLE MOVABLE GRABBABLE: dish_soap conditioner shaving_cream
CAN_OPEN POURABLE MOVABLE GRABBABLE: shampoo
CAN_OPEN CREAM POURABLE MOVABLE GRABBABLE: toothpaste
DRINKABLE POURABLE MOVABLE GRABBABLE: juice tea coffee wine mouthwash
DRINKABLE POURABLE CAN_OPEN MOVABLE GRABBABLE: milk beer
EATABLE CUTTABLE MOVABLE GRABBABLE: food_apple food_banana food_bread food_egg food_carrot food_cake food_chicken
EATABLE CUTTABLE MOVABLE GRABBABLE: food_orange food_potato food_food
EATABLE CUTTABLE CREAM MOVABLE GRABBABLE: food_cheese
EATABLE POURABLE MOVABLE GRABBABLE: food_salt food_rice
READABLE HAS_PAPER MOVABLE GRABBABLE: homework check
READABLE CUTTABLE HAS_PAPER MOVABLE GRABBABLE: bills
READABLE CAN_OPEN HAS_PAPER MOVABLE GRABBABLE: diary mail magazine
READABLE CAN_OPEN CONTAINERS HAS_PAPER MOVABLE GRABBABLE: folder
READABLE CAN_OPEN CUTTABLE HAS_PAPER MOVABLE GRABBABLE: novel book notebook
READABLE CUTTABLE HAS_PAPER MOVABLE GRABBABLE: paper
READABLE CAN_OPEN COVER_OBJECT HAS_PAPER MOVABLE GRABBABLE: newspaper
"""

# Room to its parts, one per line: what stands together. "x" is always there, "x?" often, "x*3" one to three times,
# "x@y" on y, "x<y" in y.
_PARTS = {
    "bathroom": """
bathroom_counter sink<bathroom_counter faucet@bathroom_counter bathroom_cabinet mat? walllamp*2
toilet shower bathtub? towel_rack*2 curtain? window? trashcan? washing_machine? drawing?
""",
    "bedroom": """
bed nightstand nightstand? tablelamp@nightstand pillow*3@bed mat? drawing
dresser hanger*6<dresser closetdrawer*3<dresser chair? curtain? window? filing_cabinet?
desk? bookshelf drawing? wallshelf? photoframe?@bookshelf
""",
    "dining_room": """
table chair*4 bench? mat? drawing orchid?@table
cupboard? bookshelf? wall_clock? window? phone
""",
    "hallway": """
dresser hanger*4<dresser shoe_rack? mat table? drawing?
bench walllamp*2 trashcan? floor_lamp? nightstand?
""",
    "home_office": """
desk chair computer cpuscreen@desk mousepad@desk mouse@mousepad keyboard@desk powersocket? drawing?
bookshelf bookshelf? filing_cabinet nightstand? photoframe?@bookshelf wallshelf? vase?@bookshelf curtain? window?
""",
    "kitchen": """
kitchen_counter sink<kitchen_counter faucet@kitchen_counter cupboard dishwasher? knifeblock?@kitchen_counter
kitchen_counter oven stovefan tray<oven microwave@kitchen_counter coffe_maker@kitchen_counter toaster@kitchen_counter
freezer cupboard table? chair*2 window? trashcan?
""",
    "living_room": """
couch couch? tvstand television@tvstand table coffee_table? mat? orchid?@table pillow@couch floor_lamp?
bookshelf bookshelf? chair? curtain? window? walllamp*2 drawing photoframe?@bookshelf wallshelf?
""",
}

# Room to objects that may be there: a line begins with how likely each of them is.
_OBJECTS = {
    "bathroom": """
0.97 hairbrush@bathroom_counter shampoo<bathroom_cabinet soap@bathroom_counter toothbrush@bathroom_counter
0.97 toothpaste<bathroom_cabinet towel@towel_rack
0.3 toothbrush_holder@bathroom_counter razor<bathroom_cabinet comb@bathroom_counter conditioner<bathroom_cabinet
0.3 mouthwash<bathroom_cabinet shaving_cream<bathroom_cabinet toilet_paper@bathroom_counter laundry_detergent@floor
0.3 hairdryer@bathroom_counter basket_for_clothes@floor mop@floor
""",
    "bedroom": """
0.97 blanket@bed clothes<dresser glasses@nightstand clothes_hat<dresser pillow@bed shoes@floor
0.3 clothes_shirt<dresser clothes_pants<dresser clothes_socks<dresser pajamas@bed slippers@mat sheets@bed
0.3 novel@nightstand alarm_clock@nightstand diary@nightstand toy@floor hairdryer<dresser
""",
    "dining_room": """
0.8 bowl@table cup@table fork@table knife@table mug@table plate@table spoon@table
0.3 napkin@table table_cloth@table candle@table wine<cupboard newspaper@table board_game@bench food_cake@table
0.3 food_banana@table magazine@bench
""",
    "hallway": """
0.97 key@dresser phone@dresser wallet@dresser
0.3 clothes_jacket<dresser clothes_scarf<dresser bag@bench shoes@shoe_rack slippers@shoe_rack broom@floor
0.3 dustpan@floor mop_bucket@floor vacuum_cleaner@floor mail@nightstand coin@nightstand
""",
    "home_office": """
0.97 laptop@desk paper@desk pen@desk pencil@desk
0.3 book@bookshelf notebook@desk folder<filing_cabinet homework@desk bills<filing_cabinet mail@desk headset@desk
0.3 scissors<filing_cabinet coffee@desk novel@bookshelf stereo@bookshelf check@desk box@floor
""",
    "kitchen": """
0.97 bottle@kitchen_counter pan@oven pot@oven
0.9 bowl<cupboard cup@kitchen_counter fork@kitchen_counter knife@kitchen_counter mug<cupboard plate<cupboard
0.9 spoon@kitchen_counter
0.25 cutting_board@kitchen_counter dish_soap@kitchen_counter sponge@kitchen_counter water_glass<cupboard
0.25 juice<freezer milk<freezer beer<freezer food_egg<freezer food_carrot<freezer food_cheese<freezer
0.25 food_chicken<freezer food_food<freezer food_apple@kitchen_counter food_bread@kitchen_counter food_orange@table
0.25 food_potato<cupboard food_salt<cupboard food_rice<cupboard colander<cupboard measuring_cup<cupboard tea<cupboard
0.25 kettle@kitchen_counter wooden_spoon@kitchen_counter coffee_pot@coffe_maker dishrack@kitchen_counter
0.25 paper_towel@kitchen_counter
""",
    "living_room": """
0.7 remote_control@couch novel@table magazine@coffee_table book@bookshelf blanket@couch
0.3 newspaper@couch dvd_player@tvstand stereo@bookshelf toy@mat board_game@bookshelf candle@table cup@table
0.3 iron@floor creditcard@table
""",
}


@dataclass(frozen=True)
class Piece:
    """Up to ``most`` nodes of a class, with probability ``likely``: free-standing, or ON or INSIDE (``relation``)
    a node of class ``place``."""

    class_name: str
    likely: float
    most: int = 1
    relation: str | None = None
    place: str | None = None


def _piece(word: str, likely: float = 1.0) -> Piece:
    """``"pillow*3@bed"``: one to three pillows on a bed."""
    relation = "ON" if "@" in word else "INSIDE" if "<" in word else None
    word, _, place = word.replace("<", "@").partition("@")
    if word.endswith("?"):
        word, likely = word[:-1], 0.6
    name, _, most = word.partition("*")
    return Piece(name, likely, int(most or 1), relation, place or None)


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line]


PROPERTIES: dict[str, frozenset[str]] = {
    name: frozenset(properties.split())
    for line in _PROPERTIES.splitlines()
    if line
    for properties, _, names in [line.partition(":")]
    for name in names.split()
}
PARTS: dict[str, list[list[Piece]]] = {
    room: [[_piece(word) for word in words] for words in _lines(text)] for room, text in _PARTS.items()
}
OBJECTS: dict[str, list[Piece]] = {
    room: [_piece(word, float(words[0])) for words in _lines(text) for word in words[1:]]
    for room, text in _OBJECTS.items()
}
