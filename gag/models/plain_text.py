"""A tokenizer in which no text can become a control token, and every other text the ids that it always had.

A rendered prompt is encoded in one piece by the model's own tokenizer (spaces at the start, merges over the
edge of a user's text). If it then holds another row of control tokens than the template alone, somebody typed
one, and it is encoded by a copy in which each control token goes by a private name that nobody can type: in
its vocabulary, among its added tokens, and in the template's own words. There a control token that a user
types is text like any other.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
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
        added = tokenizer.added_tokens_decoder.values()
        self._added = {token.content for token in added}
        self._single = {token.content for token in added if token.single_word}
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
        """Encode a prompt as one text, in which nothing that somebody wrote is a control token.

        Args:
            pieces: its pieces, in order.
            behind: it goes on behind other tokens, and gets no mark of a text's start.
        """
        text = self._named(list(pieces))
        if behind:
            return self.copy.encode(self._before + text, add_special_tokens=False).ids[1:]
        return self.copy.encode(text, add_special_tokens=False).ids

    def text(self, text: str) -> list[int]:
        """Encode a text that stands alone."""
        ids = self.stock(text)
        return ids if self.controls.isdisjoint(ids) else self.encode([Piece(text, plain=True)])

    def stock(self, text: str) -> list[int]:
        """Encode a text as the model's tokenizer does, control tokens and all."""
        backend: Any = self._tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        backend.no_truncation()  # somebody may have used it with
        backend.no_padding()
        return backend.encode(text, add_special_tokens=False).ids

    def steering(self, ids: list[int]) -> list[int]:
        """Return the control tokens among ids, in their order."""
        return [i for i in ids if i in self.controls]

    def _named(self, pieces: list[Piece]) -> str:
        """Join pieces, the control tokens in the template's words under their private names."""
        whole, named, start = "".join(piece.text for piece in pieces), [], 0
        for piece in pieces:
            done = 0
            for first, last, token in () if piece.plain else self._found(piece.text):
                if not self._is_inside_a_word(token, whole, start + first, start + last):
                    named += [piece.text[done:first], self._names[token]]
                    done = last
            named.append(piece.text[done:])
            start += len(piece.text)
        return "".join(named)

    def _is_inside_a_word(self, token: str, whole: str, first: int, last: int) -> bool:
        """Say whether a token that counts as a single word alone stands beside letters or digits."""
        beside = whole[max(0, first - 1) : first] + whole[last : last + 1]
        return token in self._single and any(sign.isalnum() for sign in beside)

    @cached_property
    def _found(self) -> Callable[[str], list[tuple[int, int, str]]]:
        """The places of control tokens in a template's words, which are few and the same in each prompt."""
        longest_first = sorted(self._added | self._names.keys(), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        return cache(
            lambda words: [(*m.span(), m[0]) for m in pattern.finditer(words) if m[0] in self._names]
        )

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
