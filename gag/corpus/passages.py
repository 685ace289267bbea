"""Cut a clean document into passages of at most so many tokens, at its headings, paragraphs and sentences."""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from semantic_text_splitter import MarkdownSplitter
from tokenizers import Tokenizer

from gag.corpus.documents import Block, Clean

_PERSONAL = {  # what is told of people
    "e-mail": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE),
    "phone": re.compile(
        r"(?<![\w.])\+\d{1,3}(?:[\s.\-/]?\(?\d{1,4}\)?){2,5}(?!\w)"
        r"|(?<![\w.])\(\d{2,5}\)[\s.-]?\d{2,4}(?:[\s.-]\d{2,4}){1,3}(?!\w)"
        r"|(?<=\bphone)\W{1,4}\d[\d\s().\-/]{5,}\d|(?<=\btel)\W{1,4}\d[\d\s().\-/]{5,}\d"
        r"|(?<=\bfax)\W{1,4}\d[\d\s().\-/]{5,}\d",
        re.IGNORECASE,
    ),
}

SMALL = 24  # tokens; a smaller piece joins the one before
BETWEEN = 4  # tokens at most that stand between two pieces, which joined texts have too
_HEADINGS = re.compile(r"(?:\s*#{1,6} [^\n]*(?:\n+|$))+")


@dataclass(frozen=True)
class Excerpt:
    """A passage of a document, with its origin: a row of corpus.jsonl.

    Attributes:
        id: of its text and its document.
        text: in Markdown.
        document: the document's source.
        title: the document's.
        section: the headings that it stands under, from the highest one.
        pages: those that it is from.
        tokens: of the base.
        language: of its document, as ISO 639-1.
        personal: what it tells of people: e-mail, phone.
    """

    id: str
    text: str
    document: str
    title: str
    section: str
    pages: tuple[int, ...]
    tokens: int
    language: str = ""
    personal: tuple[str, ...] = field(default=())


class Splitter:
    """Cuts texts into pieces of at most so many tokens, and counts those.

    Args:
        tokenizer: whose tokens they are; none is at hand: four characters count as one.
        most: tokens of a piece.
    """

    def __init__(self, tokenizer: Tokenizer | None, most: int):
        self._tokenizer, self._most = tokenizer, most
        self._split = (
            MarkdownSplitter.from_huggingface_tokenizer(tokenizer, most)
            if tokenizer
            else MarkdownSplitter.from_callback(_estimated, most)
        )

    def pieces(self, text: str) -> list[tuple[int, str, int]]:
        """Cut a text -> where each piece begins, the piece, and its tokens.

        What is short or holds headings alone joins its neighbour, where both have room together.
        """
        found: list[tuple[int, int, int]] = []
        cuts = self._split.chunk_indices(text)
        for (start, piece), tokens in zip(cuts, self.tokens([piece for _, piece in cuts]), strict=True):
            if found:
                begin, end, before = found[-1]
                joins = is_headings(text[begin:end]) or (tokens < SMALL and not is_headings(piece))
                if joins and before + tokens + BETWEEN <= self._most:
                    found[-1] = begin, start + len(piece), before + tokens
                    continue
            found.append((start, start + len(piece), tokens))
        texts = [text[begin:end] for begin, end, _ in found]
        return [(f[0], t, n) for f, t, n in zip(found, texts, self.tokens(texts), strict=True)]

    def tokens(self, texts: list[str]) -> list[int]:
        """Count each text's tokens."""
        if self._tokenizer is None:
            return [_estimated(text) for text in texts]
        return [
            len(found.ids) for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]


def _estimated(text: str) -> int:
    return (len(text) + 3) // 4


def cut(clean: Clean, splitter: Splitter, language: str, mask: bool = False) -> list[Excerpt]:
    """Cut what stays of a document into passages.

    Args:
        clean: the document.
        splitter: cuts its text.
        language: the document's.
        mask: whether what is told of people is written over.
    """
    blocks = [block for block in clean.kept if block.text.strip()]
    texts = [_shown(block, mask) for block in blocks]
    starts = list(accumulate((len(text) + 2 for text in texts), initial=0))
    sections, source = _sections(blocks), clean.document.source
    found = []
    for start, text, tokens in splitter.pieces("\n\n".join(texts)) if texts else ():
        first = bisect_right(starts, start) - 1
        last = bisect_right(starts, start + len(text) - 1) - 1
        within = blocks[first : last + 1]
        section = next((s for b, s in zip(within, sections[first:], strict=False) if b.kind != "heading"), "")
        name = hashlib.sha256(f"{source}\n{text}".encode()).hexdigest()[:12]
        pages = tuple(sorted({block.page for block in within if block.page}))
        personal = tuple(kind for kind, form in _PERSONAL.items() if form.search(text))
        title = clean.document.title
        found.append(Excerpt(name, text, source, title, section, pages, tokens, language, personal))
    return found


def _shown(block: Block, mask: bool) -> str:
    text = f"{'#' * min(block.level, 6)} {block.text}" if block.kind == "heading" else block.text
    for kind, form in _PERSONAL.items() if mask else ():
        text = form.sub(lambda found, kind=kind: f"{_lead(found.group())}[{kind}]", text)
    return text


def _lead(found: str) -> str:
    """Return what stands between a word such as Tel and its number."""
    return found[: len(found) - len(found.lstrip(" :.,#\t"))]


def _sections(blocks: list[Block]) -> list[str]:
    """Name the headings over each block."""
    over: list[Block] = []
    found = []
    for block in blocks:
        if block.kind == "heading":
            over = [heading for heading in over if heading.level < block.level] + [block]
        found.append(" > ".join(heading.text for heading in over))
    return found


def is_headings(text: str) -> bool:
    """Say whether a text is headings alone."""
    return bool(_HEADINGS.fullmatch(text))


def language_of() -> Callable[[str], str]:
    """Load what tells a text's language -> a function that names it, as ISO 639-1."""
    import py3langid

    def name(text: str) -> str:
        language, _ = py3langid.classify(text[:4000])
        return str(language)

    return name
