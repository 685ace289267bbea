"""The three prompts of the method as token ids: plain, ask the expert, and answer with knowledge.

The chat template of the tokenizer is rendered around markers, and the text that stands at a marker (a
question, an answer, knowledge as text) is encoded apart, by a copy of the tokenizer without any added token.
So whatever a user types stays plain text, and the ids before an injected vector never depend on what comes
after it.
"""

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from gag.errors import MismatchError

_SYSTEM, _QUESTION, _KNOWLEDGE, _ANSWER = "\ue0f0", "\ue0f1", "\ue0f2", "\ue0f3"
_MARKER = re.compile(f"([{_SYSTEM}-{_ANSWER}])")
_PLAIN = (("user", _QUESTION),)
_ASK_EXPERT = (("system", _SYSTEM), ("user", _QUESTION))
_WITH_KNOWLEDGE = (("user", f"{_SYSTEM}\nQuestion:\n{_QUESTION}\nKnowledge:\n{_KNOWLEDGE}"),)
_ANSWERED = (*_PLAIN, ("assistant", _ANSWER))


@dataclass(frozen=True)
class KnowledgePrompt:
    """Token ids of a prompt around its knowledge: `before` + S vectors + `after`.

    `shared` ids open every prompt.
    """

    before: list[int]
    after: list[int]
    shared: int


class Prompts:
    """Encode prompts for one tokenizer and its chat template (thinking off)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._plain = plain_tokenizer(tokenizer)
        self._segments = cache(self._rendered)

    def plain(self, question: str) -> list[int]:
        """Encode the question alone, as the base answers it on the general route."""
        return self._join(self._segments(_PLAIN), {_QUESTION: question})

    def ask_expert(self, question: str, system: str) -> list[int]:
        """Encode the request for background knowledge: `system` instructs, the question is the user turn."""
        return self._join(self._segments(_ASK_EXPERT), {_SYSTEM: system, _QUESTION: question})

    def with_knowledge(self, question: str, instruction: str) -> KnowledgePrompt:
        """Encode the prompt that holds knowledge vectors at its end."""
        segments = self._segments(_WITH_KNOWLEDGE)
        values = {_SYSTEM: instruction, _QUESTION: question}
        cut = segments.index(_KNOWLEDGE)
        asked = segments.index(_QUESTION)
        shared = self._join(segments[:asked], values)
        before = shared + self._join(segments[asked:cut], values)
        return KnowledgePrompt(before, self._join(segments[cut + 1 :], values), len(shared))

    def with_text(self, question: str, instruction: str, knowledge: str) -> list[int]:
        """Encode the same prompt with knowledge as text in the place of the vectors."""
        values = {_SYSTEM: instruction, _QUESTION: question, _KNOWLEDGE: knowledge}
        return self._join(self._segments(_WITH_KNOWLEDGE), values)

    def answer(self, text: str) -> list[int]:
        """Encode an assistant's answer and the token that ends its turn."""
        return [*self.text(text), self.end]

    def text(self, text: str) -> list[int]:
        """Encode text as plain text: no added token can come of it."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._added.isdisjoint(ids):
            raise MismatchError(
                "this tokenizer's own vocabulary turns plain text into a control token; use another base"
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode generated ids without control tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @cached_property
    def end(self) -> int:
        """The token that ends an assistant's turn in the chat template."""
        tail = self._encode(self._segments(_ANSWERED, generate=False)[-1])
        ends = [i for i in tail if i in self._added]
        if not ends:
            raise MismatchError(
                "the tokenizer's chat template ends no assistant turn with a control token; use a chat model"
            )
        return ends[0]

    @cached_property
    def pad(self) -> int:
        """The token for padding; it is always masked."""
        pad = self._tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.end

    @cached_property
    def identity(self) -> str:
        """The tokenizer and its chat template as text: what makes the same words the same ids."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        return f"{backend.to_str()}\n{self._tokenizer.chat_template}"

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)

    def _join(self, segments: list[str], values: dict[str, str]) -> list[int]:
        encoded = [self.text(values[s]) if s in values else self._encode(s) for s in segments]
        return [i for ids in encoded for i in ids]

    def _rendered(self, turns: tuple[tuple[str, str], ...], generate: bool = True) -> list[str]:
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns],
                tokenize=False,
                add_generation_prompt=generate,
                enable_thinking=False,
            )
        except (ValueError, TemplateError) as error:
            raise MismatchError(
                f"the tokenizer's chat template cannot render these turns ({error}); use a chat model"
            ) from error
        return [segment for segment in _MARKER.split(str(text)) if segment]

    def _encode(self, template_text: str) -> list[int]:
        return self._tokenizer(template_text, add_special_tokens=False)["input_ids"]


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Copy the tokenizer without added tokens, truncation, padding or post-processing.

    Added tokens that are not marked special (Qwen's `<think>`, `<tool_call>`) are removed like all others.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MismatchError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; GAG needs the tokenizer.json kind"
        )

    state = json.loads(backend.to_str())
    state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(state))
