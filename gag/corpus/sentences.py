"""Cut a passage's prose into sentences."""

import re

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"“(])|\n+")


def sentences(text: str) -> list[str]:
    """Return a passage's sentences; headings, tables and formulas are none."""
    lines = [line for line in text.split("\n") if not re.match(r"\s*(?:#|\||<|\$\$|```|!\[)", line)]
    found = _SENTENCE.split("\n".join(lines))
    return [" ".join(one.split()).lstrip("-*• ") for one in found if one.strip()]
