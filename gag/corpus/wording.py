"""Words as the checks of questions compare them: without grammar, without ends."""

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,]*", re.UNICODE)
COMMON = frozenset((
    "a", "about", "after", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been",
    "before", "being", "between", "but", "by", "can", "could", "did", "do", "does", "done",
    "during", "each", "every", "for", "from", "had", "has", "have", "having", "he", "her", "his",
    "how", "i", "if", "in", "into", "is", "it", "its", "least", "less", "many", "may", "might",
    "more", "most", "much", "must", "no", "nor", "not", "of", "on", "one", "or", "other", "our",
    "over", "shall", "she", "should", "since", "so", "some", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "to", "under", "very", "was", "we",
    "were", "what", "when", "where", "which", "while", "who", "whom", "whose", "why", "will",
    "with", "within", "without", "would", "you", "your",
))  # fmt: skip
_ENDS = (
    "ational", "ations", "ation", "ingly", "edly", "ments", "ment", "ing", "ies", "ied", "ers",
    "er", "ed", "es", "ly", "s", "e", "y",
)  # fmt: skip


def words_of(text: str) -> list[str]:
    """Return a text's words and numbers."""
    return [word.rstrip(".,") for word in _WORD.findall(text)]


def content_of(text: str) -> list[str]:
    """Return the stems of a text's words that are not only grammar."""
    return [stem_of(word) for word in words_of(text) if word.lower() not in COMMON]


def stem_of(word: str) -> str:
    """Cut the ends that grammar puts on a word."""
    low = word.lower().replace("’", "'").removesuffix("'s").replace(",", "")
    for end in _ENDS:
        if low.endswith(end) and len(low) - len(end) >= 3 and not low[0].isdigit():
            return low[: -len(end)]
    return low


def flat(text: str) -> str:
    """Return a text in small letters, without its signs."""
    return " ".join(re.sub(r"[^\w.%]+", " ", text.lower()).split()).strip(" .")
