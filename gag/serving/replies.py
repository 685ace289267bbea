"""Answers in the shapes that OpenAI's clients know, whole and in pieces; what GAG adds stands under `gag`."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from gag.engine.asking import Background, Ended, Event, Said
from gag.models.language_model import Token
from gag.models.prompts import Prompts
from gag.serving.told import Told, route_facts, source_facts, usage_of


class Shape(ABC):
    """One request's reply; `Chat`, `Completion` and `Response` say how it looks.

    Args:
        all_told: what becomes of its questions.
        seconds: what each took, by the parts of the way; they are read when all is over.
        prompts: whose tokens log-probabilities are of.
        background: whether the expert's text is told.
    """

    prefix = ""

    def __init__(
        self, all_told: list[Told], seconds: list[dict[str, float]], prompts: Prompts, background: bool
    ):
        self.all_told, self.seconds, self.prompts, self.background = all_told, seconds, prompts, background
        self.id, self.created = f"{self.prefix}{secrets.token_hex(12)}", int(time.time())

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the whole reply."""

    @abstractmethod
    def opening(self, told: Told) -> Iterator[dict[str, Any]]:
        """Say who answers a question, once it is routed."""

    @abstractmethod
    def piece(self, told: Told, event: Event) -> Iterator[dict[str, Any]]:
        """Say what an event tells, if anything."""

    @abstractmethod
    def closing(self, usage: bool) -> Iterator[dict[str, Any]]:
        """Say what all took."""

    def choices(self) -> Iterator[tuple[int, Told, int]]:
        """Yield the number of each answer, the question, and the answer's place among that question's."""
        number = 0
        for told in self.all_told:
            for choice in range(told.ask.count):
                yield number, told, choice
                number += 1

    def number(self, told: Told, choice: int) -> int:
        """Return an answer's number among all."""
        return sum(one.ask.count for one in self.all_told[: self.all_told.index(told)]) + choice

    def facts(self, told: Told, ended: bool) -> dict[str, Any]:
        """Say what GAG did; once it is over, with what was read and how long it took."""
        facts: dict[str, Any] = {}
        if told.route:
            facts = {"route": route_facts(told.route), "asked": told.asked, "vectors": told.vectors}
        if ended:
            place = self.all_told.index(told)
            facts["seconds"] = {name: round(value, 4) for name, value in self.seconds[place].items()}
            facts |= {"words": list(told.words)} if told.words else {}
            facts |= {"sources": [source_facts(one) for one in told.sources]} if told.sources else {}
        return facts

    def gag(self, ended: bool) -> dict[str, Any]:
        """Return the facts of the one question, or of each."""
        every = [self.facts(told, ended) for told in self.all_told]
        return every[0] if len(every) == 1 else {"prompts": every}

    @property
    def model(self) -> str:
        """What answered; several, where prompts went several ways."""
        return ",".join(dict.fromkeys(told.model for told in self.all_told))


class Chat(Shape):
    """Of /v1/chat/completions."""

    prefix, kind = "chatcmpl-", "chat.completion"

    def whole(self) -> dict[str, Any]:
        """Return the whole reply."""
        choices = []
        for number, told, choice in self.choices():
            message: dict[str, Any] = {"role": "assistant", "content": told.texts[choice], "refusal": None}
            if self.background and told.background:
                message["reasoning_content"] = told.background
            choices.append(self._choice(number, "message", message, told.tokens[choice], told, choice))
        return self._frame(choices, self.kind) | {"usage": usage_of(self.all_told), "gag": self.gag(True)}

    def opening(self, told: Told) -> Iterator[dict[str, Any]]:
        """Say who answers, and where the question went."""
        for choice in range(told.ask.count):
            delta = {"role": "assistant", "content": ""}
            chunk = self._chunk([self._choice(choice, "delta", delta, [], told, None)])
            yield chunk | ({"gag": self.gag(False)} if choice == 0 else {})

    def piece(self, told: Told, event: Event) -> Iterator[dict[str, Any]]:
        """Say what is new."""
        match event:
            case Background(text) if self.background and text:
                choices = [
                    self._choice(choice, "delta", {"reasoning_content": text}, [], told, None)
                    for choice in range(told.ask.count)
                ]
                yield self._chunk(choices)
            case Said(choice, text, tokens):
                yield self._chunk(
                    [self._choice(choice, "delta", {"content": text}, list(tokens), told, None)]
                )
            case Ended(choice, _, _):
                yield self._chunk([self._choice(choice, "delta", {}, [], told, choice)])

    def closing(self, usage: bool) -> Iterator[dict[str, Any]]:
        """Say what it took."""
        yield (
            self._chunk([]) | {"gag": self.gag(True)} | ({"usage": usage_of(self.all_told)} if usage else {})
        )

    def _choice(
        self,
        number: int,
        kind: str,
        content: dict[str, Any],
        tokens: list[Token],
        told: Told,
        ended: int | None,
    ) -> dict[str, Any]:
        finish = None if ended is None else told.finishes[ended]
        logprobs = {"content": [self._token(token) for token in tokens], "refusal": None} if tokens else None
        return {"index": number, kind: content, "logprobs": logprobs, "finish_reason": finish}

    def _token(self, token: Token) -> dict[str, Any]:
        likely = [self._named(*pair) for pair in token.top.pairs()] if token.top else []
        return self._named(token.id, token.log_probability) | {"top_logprobs": likely}

    def _named(self, id: int, chance: float) -> dict[str, Any]:
        text = self.prompts.behind([], [id])
        return {"token": text, "logprob": chance, "bytes": list(text.encode())}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._frame(choices, f"{self.kind}.chunk")

    def _frame(self, choices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return about | {"choices": choices}


class Completion(Shape):
    """Of /v1/completions."""

    prefix = "cmpl-"

    def whole(self) -> dict[str, Any]:
        """Return the whole reply."""
        choices = [
            self._choice(number, told.texts[choice], told.tokens[choice], told, choice)
            for number, told, choice in self.choices()
        ]
        return self._frame(choices) | {"usage": usage_of(self.all_told), "gag": self.gag(True)}

    def opening(self, told: Told) -> Iterator[dict[str, Any]]:
        """Say where the question went."""
        numbers = [self.number(told, choice) for choice in range(told.ask.count)]
        choices = [self._choice(number, "", [], told, None) for number in numbers]
        yield self._frame(choices) | {"gag": self.facts(told, False)}

    def piece(self, told: Told, event: Event) -> Iterator[dict[str, Any]]:
        """Say what is new."""
        match event:
            case Said(choice, text, tokens):
                yield self._frame([self._choice(self.number(told, choice), text, list(tokens), told, None)])
            case Ended(choice, _, _):
                yield self._frame([self._choice(self.number(told, choice), "", [], told, choice)])

    def closing(self, usage: bool) -> Iterator[dict[str, Any]]:
        """Say what it took."""
        yield (
            self._frame([]) | {"gag": self.gag(True)} | ({"usage": usage_of(self.all_told)} if usage else {})
        )

    def _choice(
        self, number: int, text: str, tokens: list[Token], told: Told, ended: int | None
    ) -> dict[str, Any]:
        finish = None if ended is None else told.finishes[ended]
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        texts = [self.prompts.behind([], [token.id]) for token in tokens]
        offsets = [sum(map(len, texts[:place])) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [
                {self.prompts.behind([], [id]): chance for id, chance in token.top.pairs()}
                if token.top
                else {}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return about | {"choices": choices}


class Response(Shape):
    """Of /v1/responses, without state."""

    prefix = "resp_"

    def whole(self) -> dict[str, Any]:
        """Return the whole reply."""
        told = self.all_told[0]
        cut = told.finishes[0] == "length"
        frame = self._frame("incomplete" if cut else "completed", [self._item(told.texts[0], "completed")])
        usage = usage_of(self.all_told)
        named = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
        details = {
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        frame |= {"incomplete_details": {"reason": "max_output_tokens"} if cut else None}
        return frame | {
            "usage": named | details | {"total_tokens": usage["total_tokens"]},
            "gag": self.gag(True),
        }

    def opening(self, told: Told) -> Iterator[dict[str, Any]]:
        """Say that it began, and where the question went."""
        frame = self._frame("in_progress", [])
        yield {"type": "response.created", "response": frame | {"gag": self.gag(False)}}
        yield {"type": "response.in_progress", "response": frame}
        yield {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": self._item(None, "in_progress"),
        }
        yield self._place("response.content_part.added") | {"part": _part("")}

    def piece(self, told: Told, event: Event) -> Iterator[dict[str, Any]]:
        """Say what is new."""
        if isinstance(event, Said) and event.text:
            yield self._place("response.output_text.delta") | {"delta": event.text, "logprobs": []}

    def closing(self, usage: bool) -> Iterator[dict[str, Any]]:
        """Say the whole."""
        text = self.all_told[0].texts[0]
        yield self._place("response.output_text.done") | {"text": text, "logprobs": []}
        yield self._place("response.content_part.done") | {"part": _part(text)}
        item = self._item(text, "completed")
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        whole = self.whole()
        yield {"type": f"response.{whole['status']}", "response": whole}

    def _place(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}

    def _item(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        about = {"id": f"msg_{self.id}", "type": "message", "role": "assistant"}
        return about | {"status": status, "content": content}

    def _frame(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        ask = self.all_told[0].ask
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "error": None, "incomplete_details": None, "instructions": ask.system or None,
            "model": self.model, "output": output, "max_output_tokens": ask.max_new_tokens, "metadata": {},
            "parallel_tool_calls": False, "previous_response_id": None, "store": False,
            "temperature": ask.temperature, "tool_choice": "none", "tools": [], "top_p": ask.top_p,
            "text": {"format": {"type": "text"}}, "truncation": "disabled", "usage": None,
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
