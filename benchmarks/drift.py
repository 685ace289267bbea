"""Questions as they drift from those that a bank was made from: slices by rule, for benchmarks.routing."""

import random
import re
from collections.abc import Callable

_WORDS = """
what qué which cuál who quién when cuándo where dónde how cómo many muchos much mucho is es are son was
fue were fueron does hace do hacen did hizo has tiene have tienen can puede the la a una an una of de in
en on en at en to a for para from de with con by por and y or o than que more más less menos if si he él
she ella they ellos it eso his su her su their su each cada all todos year año years años day día days
días week semana there hay first primero last último people personas money dinero
""".split()  # noqa: SIM905 - pairs, easier to read so
_SPANISH = dict(zip(_WORDS[::2], _WORDS[1::2], strict=True))
_SMALL = {
    "the",
    "a",
    "an",
    "of",
    "in",
    "is",
    "are",
    "was",
    "were",
    "do",
    "does",
    "did",
    "to",
    "for",
    "and",
    "that",
}


def short(question: str, rng: random.Random) -> str:
    """Leave the small words out, as in a search box; of long ones keep the last twelve words."""
    words = [word for word in re.findall(r"[\w$%.,'-]+", question) if word.lower() not in _SMALL]
    return " ".join(words[-12:]).rstrip(".,").lower()


def hasty(question: str, rng: random.Random) -> str:
    """Type in haste: no capitals, no marks, and in every sixth word two letters changed places."""
    words = re.sub(r"[^\w\s$%.]", "", question.lower()).split()
    return " ".join(_slip(word, rng) if len(word) > 3 and rng.random() < 1 / 6 else word for word in words)


def follow_up(question: str, rng: random.Random) -> str:
    """Ask as somebody does who has asked before."""
    begin = rng.choice(("And another thing: ", "OK, thanks. ", "One more, please. ", "Right, and then "))
    return begin + question[0].lower() + question[1:]


def another_language(question: str, rng: random.Random) -> str:
    """Say the small words in Spanish, and leave the field's own words, as bilingual people do."""
    return re.sub(r"[A-Za-z]+", lambda found: _SPANISH.get(found[0].lower(), found[0]), question)


def _slip(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word) - 1)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


SLICES: dict[str, Callable[[str, random.Random], str]] = {
    "short": short,
    "hasty": hasty,
    "follow_up": follow_up,
    "another_language": another_language,
}
