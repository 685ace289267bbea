"""What clients may send: OpenAI's three protocols as far as they are served; the rest is refused by name."""

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gag.engine.asking import Ask, Turn
from gag.project.rows import check_text
from gag.serving.errors import RequestError

MESSAGES, STOPS, CHOICES, LIKELIEST = 1024, 16, 16, 20
_QUIET = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # not served, but these values ask for nothing
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "repetition_penalty": (1,),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none",), "parallel_tool_calls": (True, False),
    "echo": (False,), "best_of": (1,), "suffix": ("",), "min_p": (0,), "truncation": ("disabled",),
    "text": ({"format": {"type": "text"}},), "include": ([],), "background": (False,),
    "reasoning_effort": ("none",), "verbosity": ("medium",),
}  # fmt: skip
Text = Annotated[str, Field(max_length=4_000_000)]


class Options(BaseModel):
    """What is GAG's own in a request, under `gag`."""

    model_config = ConfigDict(extra="forbid")

    readout_tokens: int | None = Field(None, ge=1, description="tokens that the expert may write, at most")
    background: bool = Field(False, description="tell what the expert writes, as reasoning_content")
    turns: Literal[1, 2] | None = Field(None, description="user turns that are routed (default: serve.turns)")


class StreamOptions(BaseModel):
    """When usage is told in a stream."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class Request(BaseModel):
    """What the protocols share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str = Field("gag", max_length=256)
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    gag: Options = Field(default_factory=lambda: Options())  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _nothing_else(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _QUIET or value is None or value in _NEUTRAL.get(name, ()):
                continue
            raise RequestError(400, f"{name} is not served here; leave it out", name, "unsupported_parameter")
        return self

    def asks(self) -> list[Ask]:
        """Return the questions."""
        raise NotImplementedError

    def _drawing(self) -> dict[str, Any]:
        """Return how answers are drawn: greedily where the client says nothing of a temperature."""
        return {
            "temperature": self.temperature or 0.0,
            "top_p": self.top_p or 1.0,
            "top_k": self.top_k or 0,
            "seed": secrets.randbits(31) if self.seed is None else self.seed,
            "readout_tokens": self.gag.readout_tokens,
        }


class Part(BaseModel):
    """A part of what a turn says; text alone is served."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: Text | None = None


class Message(BaseModel):
    """A turn."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None


class _Choices(Request):
    """What chat completions and completions share."""

    n: int | None = Field(1, ge=1)
    stop: Text | list[Text] | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > STOPS or any(not 0 < len(stop) <= 256 for stop in stops):
            raise RequestError(400, f"stop takes at most {STOPS} strings of 1 to 256 characters", "stop")
        return tuple(stops)

    @property
    def count(self) -> int:
        """How many answers are asked for."""
        if (self.n or 1) > CHOICES:
            raise RequestError(400, f"n is at most {CHOICES}", "n")
        return self.n or 1

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Choices):
    """Of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=LIKELIEST)

    def asks(self) -> list[Ask]:
        """Return the one question."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        return [
            Ask(
                turns=turns_of(self.messages, "messages"),
                max_new_tokens=self.max_completion_tokens or self.max_tokens,
                stop=self.stops,
                top=(self.top_logprobs or 0) if self.logprobs else None,
                count=self.count,
                **self._drawing(),
            )
        ]


class CompletionRequest(_Choices):
    """Of /v1/completions: each prompt is a question."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=LIKELIEST)

    def asks(self) -> list[Ask]:
        """Return a question for each prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) != len(prompts) or not texts:
            raise RequestError(400, "prompt is text here, not token ids; nor may it be empty", "prompt")
        if len(texts) * self.count > CHOICES:
            raise RequestError(400, f"prompts times n are at most {CHOICES}", "prompt")
        return [
            Ask(
                turns=(("user", checked(text, "prompt")),),
                max_new_tokens=self.max_tokens,
                stop=self.stops,
                top=self.logprobs,
                count=self.count,
                **self._drawing(),
            )
            for text in texts
        ]


class ResponsesRequest(Request):
    """Of /v1/responses, text alone and without state."""

    input: Text | list[Message] = Field(max_length=4_000_000)
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    previous_response_id: str | None = None

    def asks(self) -> list[Ask]:
        """Return the one question."""
        if self.previous_response_id is not None:
            raise RequestError(
                400,
                "no response is kept here; send the whole conversation as input",
                "previous_response_id",
                "unsupported_parameter",
            )
        if isinstance(self.input, str):
            turns: tuple[Turn, ...] = (("user", checked(self.input, "input")),)
        else:
            turns = turns_of(self.input, "input")
        if self.instructions:
            turns = (("system", check_text(self.instructions, "instructions")), *turns)
        return [Ask(turns=turns, max_new_tokens=self.max_output_tokens, **self._drawing())]


def turns_of(messages: list[Message], param: str) -> tuple[Turn, ...]:
    """Return a conversation whose last turn is the user's question."""
    if len(messages) > MESSAGES or not messages:
        raise RequestError(400, f"{param} has 1 to {MESSAGES} turns", param)
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        where = f"{param}[{number}]"
        text = _text(message, where)
        if message.role in ("tool", "function") or (message.model_extra or {}).get("tool_calls"):
            raise RequestError(400, f"{where}: tools are not served here", where, "unsupported_value")
        if message.role == "user":
            turns.append(("user", checked(text, where)))
        elif text.strip():
            role = "assistant" if message.role == "assistant" else "system"
            turns.append((role, check_text(text, where)))
    if not turns or turns[-1][0] != "user":
        raise RequestError(400, f"the last of {param} must be the user's question", param)
    return tuple(turns)


def checked(text: str, param: str) -> str:
    """Return a question that says something."""
    if not text.strip():
        raise RequestError(400, f"{param} is empty; ask something", param)
    return check_text(text, param)


def _text(message: Message, where: str) -> str:
    if isinstance(message.content, str) or message.content is None:
        return message.content or ""
    for part in message.content:
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            raise RequestError(
                400,
                f"{where}: a part of type {part.type[:40]} is not served here",
                where,
                "unsupported_value",
            )
    return "\n".join(part.text or "" for part in message.content)
