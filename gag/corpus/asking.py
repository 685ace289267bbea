"""Ask an OpenAI-compatible endpoint for questions on passages: many at once, each answer kept as it comes.

What was answered is never asked again: a run that is broken off, or whose budget is used up, goes on there.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gag.errors import BusyError, SettingsError
from gag.project.progress import bar
from gag.project.rows import appending

TRIES = 4
WAIT = 2.0  # seconds before the second try, twice as many before the third
LOST = 5  # requests in a row that no try answers: the endpoint is taken for gone
LATER = {408, 409, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: up to /v1.
        model: its name there.
        key: of its API.
        together: requests under way at once.
        budget: tokens of prompts and answers together, of this run; none: no end.
        timeout: seconds for one answer.
        most: tokens of an answer.
        temperature: of its answers.
    """

    url: str
    model: str
    key: str | None = None
    together: int = 8
    budget: int | None = None
    timeout: float = 120.0
    most: int = 1024
    temperature: float = 0.7


@dataclass
class Spent:
    """What a run cost, and how it ended.

    Attributes:
        asked: requests that were answered now.
        kept: that an earlier run had answered.
        tokens: of those that were answered now.
        failed: that no try answered, by the reason.
        stopped: why it ended before its end.
    """

    asked: int = 0
    kept: int = 0
    tokens: int = 0
    failed: dict[str, int] | None = None
    stopped: str = ""


def ask_all(endpoint: Endpoint, prompts: list[str], cache: Path) -> tuple[list[str | None], Spent]:
    """Ask prompts -> the answers in their order, none where there is none, and what it cost.

    Args:
        endpoint: who is asked.
        prompts: each a user's turn.
        cache: the file that keeps the answers.

    Raises:
        SettingsError: the endpoint refuses the key, or has no such model.
        BusyError: it does not answer at all.
    """
    known = dict(_kept(cache))
    names = [_name(endpoint, prompt) for prompt in prompts]
    spent = Spent(kept=sum(name in known for name in names), failed={})
    todo = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name not in known}
    if todo:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with appending(cache) as file, bar("questions", len(todo)) as advance:

            def keep(name: str, text: str) -> None:
                known[name] = text
                file.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
                file.flush()
                advance(1)

            asyncio.run(_ask(endpoint, todo, keep, spent))
    return [known.get(name) for name in names], spent


async def _ask(
    endpoint: Endpoint, todo: dict[str, str], keep: Callable[[str, str], None], spent: Spent
) -> None:
    waiting, lost = iter(todo.items()), 0
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=endpoint.together)
    timeout = httpx.Timeout(endpoint.timeout, connect=10.0)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal lost
        for name, prompt in waiting:
            if spent.stopped:
                return
            if endpoint.budget is not None and spent.tokens >= endpoint.budget:
                spent.stopped = f"the budget of {endpoint.budget:,} tokens is used up"
                return
            text, tokens, reason = await _tried(client, endpoint, prompt)
            spent.tokens += tokens
            if text is None:
                failed = spent.failed or {}
                spent.failed = failed | {reason: failed.get(reason, 0) + 1}
                lost += 1
                if lost >= LOST:
                    spent.stopped = f"the endpoint does not answer any more ({reason})"
                continue
            lost = 0
            spent.asked += 1
            keep(name, text)

    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
        await asyncio.gather(*(work(client) for _ in range(min(endpoint.together, len(todo)))))
    if not spent.asked and spent.failed:
        reasons = ", ".join(spent.failed)
        raise BusyError(
            f"{endpoint.url} answered no request ({reasons}); see that it serves, and try again", 5
        )


async def _tried(client: httpx.AsyncClient, endpoint: Endpoint, prompt: str) -> tuple[str | None, int, str]:
    """Ask once and again -> the answer, its tokens, and why there is none."""
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": endpoint.most,
        "temperature": endpoint.temperature,
    }
    reason = ""
    for turn in range(TRIES):
        wait = WAIT * 2**turn * (0.75 + random.random() / 2)
        try:
            reply = await client.post(f"{endpoint.url.rstrip('/')}/chat/completions", json=body)
        except httpx.HTTPError as error:
            reason = (
                "no answer in time" if isinstance(error, httpx.TimeoutException) else type(error).__name__
            )
        else:
            if reply.status_code == 200:
                found = _answer(reply)
                if found:
                    return *found, ""
                reason = "its answer is no completion"
            else:
                reason = f"HTTP {reply.status_code}"
                _refuse(reply, endpoint)
                if reply.status_code not in LATER:
                    return None, 0, f"{reason}: {_said(reply)}"
                wait = max(wait, _after(reply))
        if turn + 1 < TRIES:
            await asyncio.sleep(wait)
    return None, 0, reason


def _answer(reply: httpx.Response) -> tuple[str, int] | None:
    try:
        found = reply.json()
        text = found["choices"][0]["message"]["content"]
        usage = found.get("usage") or {}
        tokens = usage.get("total_tokens") or len(str(text)) // 4
        return (text, int(tokens)) if isinstance(text, str) else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _refuse(reply: httpx.Response, endpoint: Endpoint) -> None:
    if reply.status_code in (401, 403):
        raise SettingsError(
            f"{endpoint.url} refuses the key; name the variable that holds it with --key-variable"
        )
    if reply.status_code == 404:
        raise SettingsError(
            f"{endpoint.url} knows no model {endpoint.model} ({_said(reply)}); name one with "
            "--model, and the URL up to /v1"
        )


def _said(reply: httpx.Response) -> str:
    return " ".join(reply.text.split())[:160]


def _after(reply: httpx.Response) -> float:
    try:
        return min(60.0, float(reply.headers.get("Retry-After", 0)))
    except ValueError:  # a date
        return 0.0


def _name(endpoint: Endpoint, prompt: str) -> str:
    told: list[Any] = [endpoint.model, endpoint.most, endpoint.temperature, prompt]
    return hashlib.sha256(json.dumps(told).encode("utf-8", "replace")).hexdigest()


def _kept(cache: Path) -> Iterator[tuple[str, str]]:
    """Yield the answers that are kept; a line that broke off is none."""
    if not cache.is_file():
        return
    for line in cache.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found = json.loads(line)
            yield found["name"], found["text"]
        except (ValueError, LookupError, TypeError):
            continue
