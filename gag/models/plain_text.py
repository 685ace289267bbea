"""A tokenizer in which no text can become a control token, and every other text the ids that it always had.

In a copy of the tokenizer each control token goes by a private name that nobody can type: in its vocabulary,
among its added tokens, and in the chat template's own words before they are encoded. So a rendered prompt is
encoded in one piece, exactly as the model's tokenizer does it (spaces at the start, merges over the edge of a
user's text), and a control token that a user types is text like any other.
"""

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from gag.errors import MismatchError

_JINJA = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # it reads templates only
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z0-9_]+\]")
_ELEMENTS = (
    "a abbr address article aside b bdi bdo blockquote body br button caption center cite code col colgroup "
    "data dd del details dfn div dl dt em figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header "
    "hr html i img input ins kbd label legend li link main mark menu meta nav ol option p picture pre q s "
    "samp section select small source span strike strong style sub summary sup table tbody td template "
    "textarea tfoot th thead time title tr tt u ul var video"
)
_HTML = frozenset(_ELEMENTS.split())


@dataclass(frozen=True)
class Piece:
    """A piece of a prompt: the template's own words, or text that somebody wrote."""

    text: str
    plain: bool  # written by somebody: nothing in it is a control token


class PlainText:
    """Encode text, and prompts around text, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Copy the tokenizer; MismatchError: it is not of the fast kind, or cannot be copied to the id."""
        self._tokenizer = tokenizer
        self._added: dict[str, int] = {t.content: i for i, t in tokenizer.added_tokens_decoder.items()}
        renamed = {content: _private_name() for content in control_tokens(tokenizer)}
        self._names = renamed
        self._before = _private_name()  # stands before a text that goes on behind something, and is dropped
        self.copy = _renamed_copy(tokenizer, renamed, self._before)
        self.controls = self._numbers(renamed)

    @cached_property
    def identity(self) -> str:
        """The tokenizer and its chat template as text: what makes the same words the same ids."""
        return f"{tokenizer_identity(self._tokenizer)}\n{self._tokenizer.chat_template}"

    def encode(self, pieces: Iterable[Piece], behind: bool = False) -> list[int]:
        """Encode a prompt as one text.

        Args:
            pieces: its pieces, in order.
            behind: it goes on behind other tokens, and gets no mark of a text's start.
        """
        text = "".join(piece.text if piece.plain else self._named(piece.text) for piece in pieces)
        if behind:
            return self.copy.encode(self._before + text, add_special_tokens=False).ids[1:]
        return self.copy.encode(text, add_special_tokens=False).ids

    def text(self, text: str) -> list[int]:
        """Encode a text that stands alone."""
        return self.encode([Piece(text, plain=True)])

    def _named(self, words: str) -> str:
        """Call the control tokens in the template's words by their private names."""
        return self._pattern.sub(lambda found: self._names.get(found[0], found[0]), words)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._added.keys() | self._names.keys(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _numbers(self, renamed: dict[str, str]) -> frozenset[int]:
        """Return the control tokens' ids, but that of unknown characters, where the tokenizer has one.

        Refuse a tokenizer whose copy is another one, or whose unknown token is one that controls.
        """
        found: dict[str, Any] = {content: self.copy.token_to_id(name) for content, name in renamed.items()}
        for content, number in found.items():
            if number != self._tokenizer.convert_tokens_to_ids(content):
                raise MismatchError(
                    f"the tokenizer's token {content!r} has another number than its file says; save the "
                    "tokenizer again with a current transformers"
                )
        model = _state(self._tokenizer)["model"]
        unknown: str | None = model.get("unk_token")
        if model.get("unk_id") is not None:
            unknown = model["vocab"][model["unk_id"]][0]
        ends = (self._tokenizer.eos_token, self._tokenizer.bos_token)
        if unknown is not None and unknown in ends and not model.get("byte_fallback"):
            raise MismatchError(
                "the tokenizer turns unknown characters into the token that ends a text; use another model"
            )
        return frozenset(number for content, number in found.items() if content != unknown)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the tokens that steer the model: special ones, and added ones that are written as marks.

    A mark stands whole among the chat template's words and holds a sign beside letters and spaces, or has
    the form `<name>` or `[NAME]`: Qwen's `<think>` and `<tool_call>`. Gemma's line breaks, runs of spaces and
    HTML elements are text.
    """
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = tokenizer.added_tokens_decoder.values()
    words = _template_words(tokenizer)
    return special | {token.content for token in added if token.special or _steers(token.content, words)}


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what makes the same words the same ids, as text; no use of the tokenizer changes it."""
    return json.dumps(_state(tokenizer), sort_keys=True, ensure_ascii=False)


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Copy a tokenizer so that no text becomes a control token.

    It has no truncation, padding or post-processing.
    """
    return PlainText(tokenizer).copy


def _steers(content: str, words: str) -> bool:
    if _MARK.fullmatch(content):
        return content.strip("</>").lower() not in _HTML
    signs = any(not (c.isalnum() or c.isspace() or c == "\u2581") for c in content)
    return len(content) > 1 and signs and content in words


def _template_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a chat template writes and looks for: its words, without its own syntax."""
    named = tokenizer.chat_template
    sources = list(named.values()) if isinstance(named, dict) else [named] if named else []
    words = []
    for source in sources:
        try:
            tree = _JINJA.parse(_without_generation(source))
        except TemplateError:  # with syntax that transformers alone knows
            words.append(source)
            continue
        words += [node.data for node in tree.find_all(nodes.TemplateData)]
        words += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\n".join(words)


def _without_generation(source: str) -> str:
    """Drop the marks of transformers' own around what an assistant says."""
    return re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)


def _private_name() -> str:
    """Return a name that no text holds: letters that no normaliser changes, drawn anew in each process."""
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(32))


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MismatchError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; GAG needs the tokenizer.json kind"
        )
    state = json.loads(backend.to_str())
    return state | {"post_processor": None, "truncation": None, "padding": None}


def _renamed_copy(tokenizer: PreTrainedTokenizerBase, names: dict[str, str], before: str) -> Tokenizer:
    """Copy a tokenizer with its control tokens under other names, and one more token, `before`."""
    state = _state(tokenizer)
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    number = 1 + max(tokenizer.get_vocab().values(), default=0)
    state["added_tokens"].append({"id": number, "content": before} | mark)
    state["model"] = _renamed_model(state["model"], names)
    return Tokenizer.from_str(json.dumps(state))


def _renamed_model(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Rename tokens in a model's vocabulary; no merge makes one of them any more."""
    changed, vocab = dict(model), model["vocab"]
    if isinstance(vocab, dict):
        changed["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
    else:
        changed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        changed["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_made(merge))]
    return changed


def _made(merge: Any) -> tuple[str, str, str]:
    """Return the two pieces of a merge and what they make."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right
