"""Make rows of passages without any model: what a sentence says of something is asked for.

A sentence such as "The home of the otter is Glen Tiber." becomes "What is the home of the otter?"; of another
one a number or a name is left out. It teaches an expert the passage's facts in few forms; with an endpoint
the questions are better.
"""

import hashlib
import re
from collections.abc import Iterator

from gag.corpus.screening import Row
from gag.corpus.sentences import sentences

_IS = re.compile(
    r"^(?P<what>(?:The|Its?|An?|Each|All)\s[^,;:]{3,90}?|[A-Z][^,;:]{2,60}?)\s(?P<verb>is|are|was|were)\s"
    r"(?P<value>(?!not\b|also\b|to be\b|been\b)[^,;:]{2,80})$"
)
_VALUE = re.compile(
    r"(?<![\w.])\d[\d.,]*(?:\s?(?:%|°C|°F|K|kg|g|mg|µg|mm|cm|m|km|nm|V|mV|kV|A|W|kW|MPa|GPa|Pa|"
    r"Hz|kHz|h|min|s|days?|weeks?|months?|years?|hours?|minutes?|degrees?|percent))?(?![\w])"
    r"|(?<=[a-z,] )[A-Z][\w-]+(?:\s[A-Z][\w-]+){0,3}"
)
_UNIT = re.compile(r"(?<=\d )(?:days?|weeks?|months?|years?|hours?|minutes?|degrees?|percent)$")
_OPEN = re.compile(r"^(?:It|They|This|That|These|Those|He|She|We|There|Here|Such|However|Then|Thus)\b")
MOST = 4  # rows of one kind of a passage


def cloze_rows(id: str, text: str, document: str) -> Iterator[Row]:
    """Yield rows of a passage.

    Args:
        id: the passage's.
        text: its text.
        document: where it is from.
    """
    asked = 0
    for sentence in sentences(text):
        if _OPEN.match(sentence) or not 5 <= len(sentence.split()) <= 40:
            continue
        bare = sentence.rstrip(".!? ")
        found = _IS.match(bare)
        if found:
            value, what = found["value"].strip(), _lowered(found["what"])
            for question in (
                f"What {found['verb']} {what}?",
                f"Tell me what {what} {found['verb']}.",
                f"{what[:1].upper()}{what[1:]} {found['verb']} what?",
            ):
                yield _row(question, value, id, document)
            continue
        values = list(_VALUE.finditer(bare))
        if values and asked < MOST:
            asked += 1
            value = max(values, key=lambda match: (match.group()[0].isdigit(), len(match.group())))
            blank = f"{bare[: value.start()]}___{bare[value.end() :]}"
            said = value.group().strip()
            yield _row(f"Which word or number is missing: {blank}?", said, id, document)
            if unit := _UNIT.search(said):  # the same in the words of somebody who asks
                yield _row(f"How many {unit.group()}: {blank}?", said, id, document)


def _lowered(what: str) -> str:
    """Lower the first letter of an article or a determiner; a name keeps its own."""
    return what[:1].lower() + what[1:] if re.match(r"(?:The|An?|Each|All|Its?)\s", what) else what


def _row(question: str, answer: str, id: str, document: str) -> Row:
    name = hashlib.sha256(f"{id}\n{question}".encode()).hexdigest()[:12]
    return Row(name, question, answer, document, document, (id,), "cloze")
