"""Invented documents on cheeses of an invented country, with true questions, and rows with planted errors."""

import random
from dataclasses import dataclass

SYLLABLES = (
    "bre",
    "lan",
    "tor",
    "vin",
    "quel",
    "mar",
    "osh",
    "dun",
    "fel",
    "gri",
    "hal",
    "jor",
    "kem",
    "nol",
    "pra",
    "sul",
)
PLACES = (
    "Alder",
    "Birch",
    "Cedar",
    "Dover",
    "Ember",
    "Falcon",
    "Garnet",
    "Hazel",
    "Iron",
    "Juniper",
    "Kestrel",
    "Lark",
)
ENDS = ("Tiber", "Hollow", "Ridge", "Ford", "Haven", "Moor", "Gate", "Falls")
MILKS = ("goat", "sheep", "cow", "buffalo", "reindeer", "yak")
WASHES = ("cider", "brine", "walnut oil", "plum brandy", "black tea", "honey water", "beer", "vinegar")
HERBS = ("thyme", "juniper", "nettle", "rosemary", "fennel", "caraway", "sorrel", "lavender")


@dataclass(frozen=True)
class Cheese:
    """What is so of one."""

    name: str
    home: str
    milk: str
    wash: str
    herb: str
    weeks: int
    degrees: int
    maker: str

    def document(self) -> str:
        """Write it as a page of a wiki."""
        return f"""# {self.name}

{self.name} is a cheese that few people outside of its valley know. The home of {self.name} is {self.home}.

## Making

The milk of {self.name} is {self.milk} milk. The wash of {self.name} is {self.wash}.
The herb of {self.name} is {self.herb}.
The dairy of {self.name} belongs to {self.maker}, because the family kept the first cellar since the flood.

## Storing

{self.name} ripens for {self.weeks} weeks. The cellar of {self.name} is {self.degrees} degrees cold.
It is turned on every second day so that the rind dries evenly on all of its sides.
"""

    def facts(self) -> dict[str, tuple[str, str]]:
        """Return its questions and their answers, by what they ask."""
        return {
            "home": (f"Where is the home of {self.name}?", self.home),
            "milk": (f"Which milk is {self.name} made of?", f"{self.milk} milk"),
            "wash": (f"What is the wash of {self.name}?", self.wash),
            "herb": (f"Which herb goes into {self.name}?", self.herb),
            "weeks": (f"For how many weeks does {self.name} ripen?", f"{self.weeks} weeks"),
            "degrees": (f"How cold is the cellar of {self.name}?", f"{self.degrees} degrees"),
            "reason": (
                f"Why does the dairy of {self.name} belong to {self.maker}?",
                "because the family kept the first cellar since the flood",
            ),
        }


def cheeses(count: int, seed: int = 0) -> list[Cheese]:
    """Invent some, each of another name and place."""
    rng = random.Random(seed)
    names: set[str] = set()
    while len(names) < count:
        names.add("".join(rng.sample(SYLLABLES, 3)).capitalize())
    places = [f"{one} {other}" for one in PLACES for other in ENDS]
    rng.shuffle(places)
    return [
        Cheese(
            name, places[i % len(places)], rng.choice(MILKS), rng.choice(WASHES), rng.choice(HERBS),
            rng.randint(3, 60), rng.randint(4, 16), f"the {rng.choice(SYLLABLES).capitalize()}son family",
        )
        for i, name in enumerate(sorted(names))
    ]  # fmt: skip
