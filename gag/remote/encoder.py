"""The router's query vectors from a pooling server: the expert backbone's mean state, as it is here."""

import weakref

import httpx
import torch

from gag.errors import BusyError, MismatchError
from gag.models.loading import one_line
from gag.models.prompts import Prompts
from gag.project.domain import KNOWN_PROMPT, EncoderSpec
from gag.remote.replies import refusal

CLOSE = 0.05  # of the length of what is known of a vector, which half precision may cost
TOGETHER = 64  # questions of a request


class RemoteEncoder:
    """The expert backbone on a pooling server (`--runner pooling`, MEAN).

    Args:
        url: the server's.
        spec: what the project's banks were made by.
        prompts: the backbone's.
        key: of the server's API.
        timeout: seconds, after which the server counts as away.

    Raises:
        BusyError: it does not answer.
        MismatchError: it encodes otherwise than what made the banks.
    """

    def __init__(self, url: str, spec: EncoderSpec, prompts: Prompts, key: str | None, timeout: float):
        self.spec, self._url, self._prompts = spec, url.rstrip("/"), prompts
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, trust_env=False)
        weakref.finalize(self, self._client.close)
        listed = self._asked("GET", "/v1/models").get("data") or [{}]
        self._model = str(listed[0].get("id"))
        known, here = torch.tensor(spec.known), self.encode([KNOWN_PROMPT])[0]
        if here.shape[0] != spec.width or (here[: len(known)] - known).norm() > CLOSE * known.norm():
            raise MismatchError(
                f"{url} encodes questions otherwise than what made this project's banks; start it with the "
                'expert backbone, --runner pooling and --pooler-config \'{"pooling_type": "MEAN"}\''
            )

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Encode questions -> [B, Dq], L2-normalised float32."""
        rows = [self._prompts.text(question)[: self.spec.max_tokens] for question in questions]
        found = []
        for start in range(0, len(rows), TOGETHER):
            body = {"model": self._model, "input": rows[start : start + TOGETHER], "encoding_format": "float"}
            found += _vectors(self._asked("POST", "/v1/embeddings", body), len(body["input"]))
        vectors = torch.tensor(found, dtype=torch.float32).reshape(len(rows), -1)
        return torch.nn.functional.normalize(vectors, dim=-1)

    def _asked(self, method: str, path: str, body: dict | None = None) -> dict:
        try:
            reply = self._client.request(method, self._url + path, json=body)
            read = reply.json() if reply.status_code == 200 else {}
        except (httpx.HTTPError, ValueError) as error:
            reason = one_line(error) or type(error).__name__
            raise BusyError(f"the router's encoder at {self._url} does not answer: {reason}", 5) from error
        if reply.status_code != 200:
            reason = f"HTTP {reply.status_code}: {refusal(reply.content)}"
            raise BusyError(f"the router's encoder at {self._url} refuses: {reason}", 5)
        return read if isinstance(read, dict) else {}


def _vectors(reply: dict, count: int) -> list[list[float]]:
    """Return the vectors of a reply, in the order of what was asked."""
    try:
        found = [one["embedding"] for one in sorted(reply["data"], key=lambda one: one["index"])]
    except (LookupError, TypeError) as error:
        raise BusyError("the router's encoder answers what are no vectors", 5) from error
    if len(found) != count:
        raise BusyError(f"the router's encoder answers {len(found)} of {count} questions", 5)
    return found
