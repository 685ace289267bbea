"""The three prompts of the method as token ids: plain, ask the expert, and answer with knowledge.

The plain prompt has the ids of the model's own chat template, id for id. Whatever a user types is plain text
in all of them, and the ids before an injected vector never depend on what comes after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby, takewhile

from transformers import PreTrainedTokenizerBase

from gag.errors import DataError, MismatchError
from gag.models.chat_template import (
    ANSWER,
    KNOWLEDGE,
    QUESTION,
    SYSTEM,
    TURNS,
    ChatTemplate,
    Turns,
    turn_marker,
)
from gag.models.plain_text import Piece, PlainText
from gag.project.settings import PromptSettings

_PLAIN: Turns = (("user", QUESTION),)
_ASK_EXPERT: Turns = (("system", SYSTEM), ("user", QUESTION))
_ASK_IN_ONE_TURN: Turns = (("user", f"{SYSTEM}\n\n{QUESTION}"),)
_ANSWERED: Turns = (*_PLAIN, ("assistant", ANSWER))


@dataclass(frozen=True)
class KnowledgePrompt:
    """Token ids of a prompt around its knowledge: `before` + S vectors + `after`."""

    before: list[int]
    after: list[int]


class Prompts:
    """Encode prompts for one tokenizer and its chat template (thinking off).

    Raises:
        MismatchError: the tokenizer is not of the fast kind, or its template renders no turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._text = PlainText(tokenizer)
        self._of_today = ChatTemplate(tokenizer, today=True)  # the general route: the stock prompt
        self._template = ChatTemplate(tokenizer, today=False)  # what is trained reads the same every day

    def plain(self, question: str) -> list[int]:
        """Encode the question alone, as the base answers it on the general route."""
        return self._ids(self._of_today, _PLAIN, {QUESTION: question})

    def chat(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Encode a conversation of (role, text) that asks for an answer, as the base has it on its own.

        Turns of one role in a row are one turn; a template without a system turn has it at the head of the
        first question.

        Raises:
            DataError: it has too many turns.
        """
        joined = _one_a_role(turns)
        if len(joined) > TURNS:
            raise DataError(f"the conversation has {len(joined)} turns, at most {TURNS} are read")
        if joined[0][0] == "system" and len(joined) > 1 and not self._of_today.knows(_asking_after_system()):
            joined = [("user", f"{joined[0][1]}\n\n{joined[1][1]}"), *joined[2:]]
        markers = [turn_marker(number) for number in range(len(joined))]
        values = {marker: text for marker, (_, text) in zip(markers, joined, strict=True)}
        roles = tuple((role, marker) for marker, (role, _) in zip(markers, joined, strict=True))
        return self._ids(self._of_today, roles, values)

    def ask_expert(self, question: str, system: str) -> list[int]:
        """Encode the request for background knowledge.

        `system` instructs: as the system turn, or at the head of the user's where the template has none; an
        empty one leaves the question alone. The question is the user turn.
        """
        values = {SYSTEM: system, QUESTION: question} if system else {QUESTION: question}
        return self._ids(self._template, self._asking if system else _PLAIN, values, self._opening)

    def with_knowledge(self, question: str, words: PromptSettings, system: str = "") -> KnowledgePrompt:
        """Encode the prompt that holds knowledge vectors, behind a system turn, if any."""
        turns, values = _around(words.around())
        if system and self._template.knows(after := (("system", turn_marker(0)), *turns)):
            turns, values = after, values | {turn_marker(0): system}
        elif system:
            turns, values = _around(words.around(system))
        values[QUESTION] = question
        marked = self._template.marked(turns)
        if marked.count(KNOWLEDGE) > 1:
            raise MismatchError(
                "the tokenizer's chat template writes what the user says more than once; use another model"
            )
        pieces = self._template.pieces(turns, values)
        cut = next(i for i, piece in enumerate(pieces) if piece.text == KNOWLEDGE and not piece.plain)
        before = self._text.stock("".join(piece.text for piece in pieces[:cut]))
        if self._text.steering(before) != self._steering(marked.partition(KNOWLEDGE)[0]):
            before = self._text.encode(pieces[:cut])
        after = [*pieces[cut + 1 :], *self._opening]
        return KnowledgePrompt(before, self._text.encode(after, behind=True))

    def with_text(self, question: str, words: PromptSettings, knowledge: str) -> list[int]:
        """Encode the same prompt with knowledge as text in the place of the vectors."""
        turns, values = _around(words.around())
        asked = {QUESTION: question, KNOWLEDGE: knowledge}
        return self._ids(self._template, turns, values | asked, self._opening)

    def answer(self, text: str) -> list[int]:
        """Encode an assistant's answer behind a prompt, and the token that ends its turn."""
        if not text:
            return [self.end]
        written = [*self._space, Piece(text, plain=True)]
        before, whole = self._request_ids, self._text.encode([*self._request, *written])
        if whole[: len(before)] == before:
            return [*whole[len(before) :], self.end]
        return [*self._text.encode(written, behind=True), self.end]

    def text(self, text: str) -> list[int]:
        """Encode a text that stands alone, as plain text: no control token can come of it."""
        return self._text.text(text)

    def shared(self, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
        """Return what all prompts of a kind begin with, whatever the question."""
        pairs = zip(encode("a"), encode("Why?"), strict=False)
        return tuple(id for id, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def decode(self, ids: list[int]) -> str:
        """Decode generated ids without control tokens."""
        return self._raw(ids).strip()

    def pieces(self, ids: list[int]) -> list[tuple[list[int], str]]:
        """Cut a text's tokens where its characters are whole -> the places of each piece, and its text.

        Most pieces are one token; some characters take several.
        """
        found: list[tuple[list[int], str]] = []
        before, start = 0, 0  # the piece behind which a token is read, and where the open piece begins
        for place in range(len(ids)):
            text = self.behind(ids[before:start], ids[start : place + 1])
            if is_cut(text) and place + 1 < len(ids) and place - start < LONGEST:
                continue
            found.append((list(range(start, place + 1)), text))
            before, start = start, place + 1
        return found

    def behind(self, before: list[int], ids: list[int]) -> str:
        """Decode tokens as they stand behind others."""
        return self._raw([*before, *ids])[len(self._raw(before)) :]

    def vocabulary(self, size: int) -> list[str]:
        """Return the text of each of the first tokens, with the space that it puts before itself."""
        ahead = self.text("a")[-1:]
        known = len(self._raw(ahead))
        return [self._raw([*ahead, token])[known:] for token in range(size)]

    def _raw(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def tokens(self) -> dict[str, int]:
        """The tokenizer's tokens and their numbers: models that share them share ids."""
        return self._tokenizer.get_vocab()

    @cached_property
    def end(self) -> int:
        """The token that ends an assistant's turn in the chat template, else the tokenizer's end of text."""
        behind = self._answered[self._answered.index(_ANSWER) + 1 :] if _ANSWER in self._answered else []
        ends = self._text.steering(self._text.encode(behind, behind=True))
        if ends:
            return ends[0]
        if isinstance(self._tokenizer.eos_token_id, int):
            return self._tokenizer.eos_token_id
        raise MismatchError(
            "the tokenizer's chat template ends no assistant turn with a control token, and it has no "
            "eos_token; use a chat model"
        )

    @property
    def identity(self) -> str:
        """The tokenizer and its chat template as text: what makes the same words the same ids."""
        return self._text.identity

    def lacking(self, size: int) -> list[str]:
        """Return the tokens that a prompt or a text may hold and a table of `size` embeddings does not."""
        asked = self.with_knowledge("?", PromptSettings(answer="?"))
        written = {self.end, *self.plain("?"), *self.ask_expert("?", "?"), *asked.before, *asked.after}
        typed = set(self._tokenizer.get_vocab().values()) - self._text.controls
        beyond = sorted(i for i in typed | written if i >= size)
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(beyond)]

    def _ids(
        self, template: ChatTemplate, turns: Turns, values: dict[str, str], more: Sequence[Piece] = ()
    ) -> list[int]:
        """Encode a rendered prompt as the model's tokenizer does, unless somebody typed a control token."""
        behind = "".join(piece.text for piece in more)
        whole = template.filled(turns, values)
        if whole is not None:
            ids = self._text.stock(whole + behind)
            if self._text.steering(ids) == self._steering(template.marked(turns) + behind):
                return ids
        return self._text.encode([*template.pieces(turns, values), *more])

    @cached_property
    def _steering(self) -> Callable[[str], list[int]]:
        """The control tokens that a template writes around markers."""
        return cache(lambda marked: self._text.steering(self._text.stock(marked)))

    @cached_property
    def _asking(self) -> Turns:
        return _ASK_EXPERT if self._template.knows(_ASK_EXPERT) else _ASK_IN_ONE_TURN

    @cached_property
    def _answered(self) -> list[Piece]:
        return self._template.pieces(_ANSWERED, {}, generate=False)

    @cached_property
    def _asks(self) -> str:
        """The template's words behind a question, which ask for an answer."""
        return self._template.pieces(_PLAIN, {})[-1].text

    @cached_property
    def _opens(self) -> str:
        """What the template writes between these words and an answer."""
        if _ANSWER not in self._answered:
            return ""
        behind_question = self._answered[self._answered.index(_ANSWER) - 1].text
        return behind_question.removeprefix(self._asks) if behind_question.startswith(self._asks) else ""

    @property
    def _request(self) -> list[Piece]:
        return [Piece(self._asks, plain=False), *self._opening]

    @cached_property
    def _request_ids(self) -> list[int]:
        return self._text.encode(self._request)

    @property
    def _opening(self) -> list[Piece]:
        """Such words as `<|channel|>final<|message|>`: they belong to the prompt."""
        words = self._opens.rstrip()
        return [Piece(words, plain=False)] if words else []

    @property
    def _space(self) -> list[Piece]:
        """A space before an answer: it belongs to the answer's first word."""
        space = self._opens[len(self._opens.rstrip()) :]
        return [Piece(space, plain=False)] if space else []


_ANSWER = Piece(ANSWER, plain=False)
LONGEST = 16  # tokens of one character


def is_cut(text: str) -> bool:
    """Say whether a decoded text ends inside a character: more tokens make it whole."""
    return text.endswith("\ufffd")


def _around(words: tuple[str, str, str]) -> tuple[Turns, dict[str, str]]:
    """Put markers for the words around question and knowledge, which are plain text like these."""
    said = {turn_marker(place): text for place, text in enumerate(words, 1) if text}
    first, between, behind = (turn_marker(place) * (turn_marker(place) in said) for place in (1, 2, 3))
    return (("user", f"{first}{QUESTION}{between}{KNOWLEDGE}{behind}"),), said


def _asking_after_system() -> Turns:
    return ("system", turn_marker(0)), ("user", turn_marker(1))


def _one_a_role(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join turns of one role that follow each other."""
    grouped = groupby(turns, key=lambda turn: turn[0])
    return [(role, "\n\n".join(text for _, text in some)) for role, some in grouped]
