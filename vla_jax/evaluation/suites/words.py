"""What the instructions of the suites say about things.

Keys are concepts that no robot episode contains: web-only ones, or background ones with names short
enough for the corpus to ask about.
"""

from __future__ import annotations

# Large and of one colour: what is easy to see.
SIMPLE = (
    *("pink block", "brown block", "black block", "lemon", "tomato", "tangerine", "pear"),
    *("balloon", "tennis ball", "cloud", "tulip", "fire", "eggplant", "milk"),
)

SYMBOLS = ("check mark", "question mark", "lightning")
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
)

SIGNS = {
    "phone": "thing to call a friend with",
    "recycling symbol": "sign for recycling",
    "no smoking": "sign that forbids smoking",
    "no bicycles": "sign that forbids bicycles",
    "wheelchair symbol": "sign for wheelchair users",
    "radioactive": "sign that warns of radiation",
    "biohazard": "sign that warns of germs",
    "atm sign": "sign of a cash machine",
    "litter in bin sign": "sign for rubbish",
    "medical symbol": "sign of medicine",
    "heavy dollar sign": "sign of money",
    "peace symbol": "sign of peace",
}

NUTRITION: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("healthy drink", ("milk",), ("beer", "wine", "cocktail glass")),
    ("drink with alcohol", ("beer", "wine"), ("milk", "coffee", "beverage box")),
    (
        "healthy snack",
        ("pear", "tangerine", "peach", "cherries"),
        ("cookie", "cake", "fries", "ice cream", "donut", "candy", "lollipop", "chocolate bar"),
    ),
    (
        "vegetable that is good for you",
        ("broccoli", "tomato", "eggplant"),
        ("cookie", "cake", "fries", "ice cream", "burger", "donut", "candy", "sushi"),
    ),
    (
        "sweet dessert",
        ("ice cream", "cake", "cookie"),
        ("broccoli", "eggplant", "fries", "cheese", "bread", "pizza", "burger", "carrot"),
    ),
    (
        "food with a lot of protein",
        ("egg", "cheese"),
        ("pear", "lemon", "cherries", "candy", "tomato", "apple", "grapes", "carrot"),
    ),
    (
        "greasy food",
        ("fries",),
        ("pear", "lemon", "peach", "broccoli", "tomato", "apple", "grapes", "carrot"),
    ),
)
"""(description, what it fits, what it does not fit)."""

PROFESSIONS = (
    *("firefighter", "police officer", "astronaut", "pilot", "cook", "farmer", "teacher"),
    *("judge", "mechanic", "scientist", "singer", "artist", "detective", "health worker"),
    *("construction worker", "santa claus", "princess", "vampire", "mermaid", "ninja"),
)

FACES = {
    "man beard": "man with a beard",
    "man bald": "bald man",
    "man curly hair": "man with curly hair",
    "woman white hair": "woman with white hair",
    "woman red hair": "woman with red hair",
    "woman blond hair": "woman with blond hair",
    "nerd face": "face with glasses",
    "cowboy hat face": "face with a cowboy hat",
    "face with medical mask": "face with a mask",
    "crying face": "crying face",
    "sleeping face": "sleeping face",
    "angry face": "angry face",
    "winking face": "winking face",
    "clown face": "clown's face",
}

BACKDROPS = (
    *("cityscape", "sunset", "national park", "world map", "circus tent", "framed picture"),
    *("playground slide", "fireworks", "camping", "night with stars", "milky way"),
)
"""Background concepts whose picture is printed over a whole table."""

LANGUAGES = ("de", "es", "fr", "it", "pt")

_NAMED = {
    "lemon": ("die zitrone", "el limón", "le citron", "il limone", "o limão"),
    "duck": ("die ente", "el pato", "le canard", "l'anatra", "o pato"),
    "turtle": ("die schildkröte", "la tortuga", "la tortue", "la tartaruga", "a tartaruga"),
    "snail": ("die schnecke", "el caracol", "l'escargot", "la lumaca", "o caracol"),
    "rabbit": ("den hasen", "el conejo", "le lapin", "il coniglio", "o coelho"),
    "pear": ("die birne", "la pera", "la poire", "la pera", "a pera"),
    "monkey": ("den affen", "el mono", "le singe", "la scimmia", "o macaco"),
    "whale": ("den wal", "la ballena", "la baleine", "la balena", "a baleia"),
    "butterfly": (
        "den schmetterling",
        "la mariposa",
        "le papillon",
        "la farfalla",
        "a borboleta",
    ),
    "bee": ("die biene", "la abeja", "l'abeille", "l'ape", "a abelha"),
    "train": ("den zug", "el tren", "le train", "il treno", "o trem"),
    "bicycle": ("das fahrrad", "la bicicleta", "le vélo", "la bicicletta", "a bicicleta"),
    "airplane": ("das flugzeug", "el avión", "l'avion", "l'aeroplano", "o avião"),
    "guitar": ("die gitarre", "la guitarra", "la guitare", "la chitarra", "a guitarra"),
    "bell": ("die glocke", "la campana", "la cloche", "la campana", "o sino"),
    "pink block": (
        "den rosa block",
        "el bloque rosa",
        "le bloc rose",
        "il blocco rosa",
        "o bloco rosa",
    ),
    "black block": (
        "den schwarzen block",
        "el bloque negro",
        "le bloc noir",
        "il blocco nero",
        "o bloco preto",
    ),
    "brown block": (
        "den braunen block",
        "el bloque marrón",
        "le bloc marron",
        "il blocco marrone",
        "o bloco marrom",
    ),
    # Of robot episodes, to be moved to one of the above.
    "apple": ("den apfel", "la manzana", "la pomme", "la mela", "a maçã"),
    "banana": ("die banane", "el plátano", "la banane", "la banana", "a banana"),
}
TRANSLATED = tuple(key for key in _NAMED if key not in ("apple", "banana"))
TRANSLATED_MOVERS = ("apple", "banana")

_SENTENCES = {
    "pick": ("nimm {x}", "toma {x}", "prends {x}", "prendi {x}", "pegue {x}"),
    "near": (
        "bring {x} neben {y}",
        "lleva {x} hacia {y}",
        "amène {x} vers {y}",
        "porta {x} verso {y}",
        "leve {x} até {y}",
    ),
    "put": (
        "lege {x} auf die {c} matte",
        "pon {x} sobre la alfombrilla {c}",
        "pose {x} sur le tapis {c}",
        "metti {x} sul tappetino {c}",
        "coloque {x} no tapete {c}",
    ),
    "push": (
        "schiebe {x} nach {d}",
        "empuja {x} hacia la {d}",
        "pousse {x} vers la {d}",
        "spingi {x} verso {d}",
        "empurre {x} para a {d}",
    ),
}
_SIDES = {
    "left": ("links", "izquierda", "gauche", "sinistra", "esquerda"),
    "right": ("rechts", "derecha", "droite", "destra", "direita"),
}
TRANSLATED_DIRECTIONS = tuple(_SIDES)
"""Front and back are not among them: "adelante", "avant" and "avanti" can mean either."""
_COLORS = {
    "red": ("rote", "roja", "rouge", "rosso", "vermelho"),
    "green": ("grüne", "verde", "vert", "verde", "verde"),
    "blue": ("blaue", "azul", "bleu", "blu", "azul"),
    "yellow": ("gelbe", "amarilla", "jaune", "giallo", "amarelo"),
    "orange": ("orange", "naranja", "orange", "arancione", "laranja"),
    "purple": ("lila", "morada", "violet", "viola", "roxo"),
}


def name_in(language: str, key: str) -> str:
    """`den affen` for "monkey" in "de": with its article, as the object of a sentence."""
    return _NAMED[key][LANGUAGES.index(language)]


def sentence_in(
    language: str, family: str, target: str, reference: str = "", direction: str = ""
) -> str:
    """A whole instruction in one of `LANGUAGES`.

    Args:
      target: one of `TRANSLATED` or `TRANSLATED_MOVERS`.
      reference: likewise for "near"; "<colour> mat" for "put".
      direction: for "push", one of `TRANSLATED_DIRECTIONS`.
    """
    number = LANGUAGES.index(language)
    color = reference.removesuffix(" mat")
    return _SENTENCES[family][number].format(
        x=name_in(language, target),
        y=name_in(language, reference) if family == "near" else "",
        c=_COLORS[color][number] if family == "put" else "",
        d=_SIDES[direction][number] if family == "push" else "",
    )
