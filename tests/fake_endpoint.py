"""An OpenAI-compatible endpoint for tests: it writes rows by rule, and fails on request."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.served import listening


class FakeEndpoint:
    """One endpoint.

    Attributes:
        asked: the prompts that came.
        odd: how it answers otherwise, one after another: a status, or garbage, half, slow, page.
        key: that it wants, if one.
        wait: seconds before an answer.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.odd: list[Any] = []
        self.key, self.url = "", ""
        self.slow, self.wait = threading.Event(), 0.0

    def app(self) -> FastAPI:
        """Make its route."""
        app = FastAPI()

        @app.post("/v1/chat/completions")
        def complete(body: dict[str, Any], request: Request) -> Response:
            if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "no"}}, 401)
            if body["model"] != "writer":
                return JSONResponse({"error": {"message": "no such model"}}, 404)
            prompt = body["messages"][0]["content"]
            self.asked.append(prompt)
            time.sleep(self.wait)
            odd = self.odd.pop(0) if self.odd else None
            if isinstance(odd, int):
                return JSONResponse({"error": "later"}, odd, headers={"Retry-After": "0"})
            if odd == "page":
                return Response("<html>busy</html>", media_type="text/html")
            if odd == "slow":
                self.slow.wait(5)
            text = (
                "I would rather not." if odd == "garbage" else f"Here they are:\n```json\n{rows(prompt)}\n```"
            )
            text = text[: int(0.7 * len(text))] if odd == "half" else text
            usage = {"total_tokens": 100}
            return JSONResponse({"choices": [{"message": {"content": text}}], "usage": usage})

        return app


def rows(prompt: str) -> str:
    """Write rows on the facts of the passage in a prompt: "The X of Y is Z."."""
    passage = prompt.rpartition("Passage:")[2]
    found = re.findall(r"The (\w+) of (\w+) is ([\w ]+)\.", passage)
    made: list[dict[str, Any]] = [
        {
            "kind": "fact",
            "wordings": [f"What is the {what} of {name}?", f"Which {what} does {name} have?"],
            "answer": value,
        }
        for what, name, value in found
    ]
    made += (
        [{"kind": "reason", "wordings": ["Why does the passage say so?"], "answer": found[0][2]}]
        if found
        else []
    )
    made += [{"kind": "fact", "wordings": ["How old is the moon of the valley?"], "answer": "4000 years"}]
    return json.dumps(made)


@contextmanager
def running(fake: FakeEndpoint) -> Iterator[FakeEndpoint]:
    """Serve it on the loopback."""
    with listening(fake.app()) as url:
        fake.url = f"{url}/v1"
        yield fake
        fake.slow.set()
