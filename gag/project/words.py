"""Words of a text as they are read: what metrics compare, and what counts as already said.

Full-width and raised characters are the plain ones, `1,000` is `1000`, and of scripts that put no spaces
between words each character is a word.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import regex

ANSWERS = 4096  # that a domain's common words are counted in, at most
RARE = 0.01  # share of a domain's answers: words in fewer of them are not common
_SCRIPTS = "Han Hiragana Katakana Hangul Bopomofo Thai Lao Khmer Myanmar Tibetan"
UNSPACED = "".join(rf"\p{{{script}}}" for script in _SCRIPTS.split()) + "\u30fc"
_TOKEN = regex.compile(
    rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+|[^\p{{Z}}\p{{C}}]", regex.V1
)
_POWER = re.compile(r"(?<=[0-9])(?=[\u00b2\u00b3\u00b9\u2070-\u2079])")  # 10\u00b2 is 10^2
_APART = re.compile(r"(?<=[0-9])(?=[\u2080-\u2089\u00bc-\u00be\u2150-\u215f])")  # and 1\u00bd is 1 1/2
_THIN_SPACE = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_THOUSANDS = re.compile(
    r"(?<![\d.,'])[1-9]\d{0,2}(?:([,'])\d{3})(?:\1\d{3})*(?![\d,'])|"
    r"(?<![\d.,'])[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,'])"
)
_HIDDEN = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphens, spaces without width
_SIGNS = str.maketrans(
    {"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-", "\u2044": "/",
     "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'}
)  # fmt: skip


def tokens(text: str) -> list[str]:
    """Cut text into words, characters of scripts without spaces, and other visible characters."""
    return _TOKEN.findall(readable(text))


def common_words(answers: Iterable[str]) -> dict[str, float]:
    """Return the share of the different answers that hold a word, for words in several and in over `RARE`."""
    different = list(dict.fromkeys(answers))
    different = different[:: -(-len(different) // ANSWERS) or 1]
    counts = Counter(word for answer in different for word in set(tokens(answer)))
    most = max(1, RARE * len(different))
    return {word: count / len(different) for word, count in sorted(counts.items()) if count > most}


def readable(text: str) -> str:
    """Return lower-case text without variants of width, form and digits, and without marks of thousands."""
    text = _APART.sub(" ", _POWER.sub("^", _THIN_SPACE.sub("", _HIDDEN.sub("", text))))
    plain = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    plain = re.sub(r"[^\W\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), plain)
    return _THOUSANDS.sub(lambda number: re.sub("[,']", "", number[0]), plain).lower()
