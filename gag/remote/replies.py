"""What a vLLM server's replies say: the tokens of a completion, their log-probabilities, and refusals."""

import json
from typing import Any

import torch

from gag.models.language_model import Likely
from gag.project.domain import KnownToken

MARK = "token_id:"  # before a token, where `return_tokens_as_token_ids` asks for numbers


def tokens_of(choice: dict[str, Any], top: int) -> list[tuple[int, float, Likely | None]]:
    """Return a choice's tokens, or those of a piece of it: number, log-probability, the likeliest ones."""
    told = choice.get("logprobs") or {}
    chances, best = told.get("token_logprobs") or [], told.get("top_logprobs") or []
    return [
        (int(id), float(chances[i]), _likely(best[i], top) if top else None)
        for i, id in enumerate(choice.get("token_ids") or [])
    ]


def known_answer(choice: dict[str, Any]) -> tuple[KnownToken, ...]:
    """Return a greedy answer as what is known of a model."""
    return tuple(
        KnownToken(id=id, log_probability=chance, lead=float(top.log_probabilities.diff().abs().sum()))
        for id, chance, top in tokens_of(choice, 2)
        if top
    )


def prompt_steps(choice: dict[str, Any], top: int) -> list[Likely]:
    """Return what was likeliest at each token of a prompt but its first [T - 1]."""
    return [_of_prompt(step, top) for step in (choice.get("prompt_logprobs") or [])[1:]]


def prompt_chances(choice: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """Return the log-probability of each token of a prompt but its first [T - 1]."""
    steps = (choice.get("prompt_logprobs") or [])[1:]
    found = [step[str(id)]["logprob"] for step, id in zip(steps, ids[1:], strict=True)]
    return torch.tensor(found, dtype=torch.float32)


def refusal(content: bytes) -> str:
    """Return the message of a server's error, in one line."""
    try:
        found = json.loads(content)
        found = found.get("error", found.get("detail", found))
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300]


def _likely(best: dict[str, float], top: int) -> Likely:
    pairs = sorted(best.items(), key=lambda pair: -pair[1])[:top]
    return Likely(
        torch.tensor([int(name.removeprefix(MARK)) for name, _ in pairs]),
        torch.tensor([chance for _, chance in pairs], dtype=torch.float32),
    )


def _of_prompt(step: dict[str, dict[str, Any]], top: int) -> Likely:
    return _likely({name: one["logprob"] for name, one in step.items()}, top)
