"""A server with vLLM's routes, over a tiny model: it records what it is asked, and fails on request."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from safetensors.torch import save_file

from gag.models.experts import Experts
from gag.models.loading import load_backbone
from gag.project.settings import ModelSettings
from tests.served import listening

LOCK = threading.Lock()  # PEFT's adapters are switched for a whole model


class FakeVllm:
    """One server.

    Attributes:
        asked: the requests that came, in order: (path, body).
        stops_after: tokens behind which a stream breaks off; None: none does.
        status: of every completion, where it is not 200.
        delay: seconds before each token.
        odd: how it answers otherwise: abort (an end of its own), done (no token at all), page (of HTML),
            null (a choice that is none).
    """

    def __init__(self, model: Path, states: Path | None = None, layers: tuple[int, ...] = ()):
        self.root, self.states, self.layers = model, states, layers
        self.experts = Experts(load_backbone(ModelSettings(model=str(model)), model))
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.adapters: dict[str, str] = {}
        self.stops_after: int | None = None
        self.status, self.delay, self.url, self.count = 200, 0.0, "", 0
        self.embeds, self.odd = True, ""  # --enable-prompt-embeds

    def bodies(self, path: str = "/v1/completions") -> list[dict[str, Any]]:
        """Return the bodies of the requests to a path."""
        return [body for asked, body in self.asked if asked == path]

    def app(self) -> FastAPI:
        """Make its routes."""
        app = FastAPI()

        @app.middleware("http")
        async def record(request: Request, call_next: Any) -> Response:
            body = await request.body()
            self.asked.append((request.url.path, json.loads(body) if body else {}))
            return await call_next(request)

        @app.get("/v1/models")
        def models() -> Any:
            own = {"id": "own", "root": str(self.root), "parent": None, "max_model_len": 512}
            return {"data": [own, *({"id": name, "parent": "own"} for name in self.adapters)]}

        @app.post("/v1/load_lora_adapter")
        def load(body: dict[str, Any]) -> Any:
            name, folder = body["lora_name"], Path(body["lora_path"])
            if name in self.adapters:
                return failed(400, f"The lora adapter '{name}' has already been loaded.")
            if not (folder / "adapter_config.json").is_file():
                return failed(404, f"Loading lora {name} failed: No adapter found for {folder}")
            with LOCK:
                self.experts.load(name, folder)
            self.adapters[name] = str(folder)
            return Response("Success")

        @app.post("/v1/unload_lora_adapter")
        def unload(body: dict[str, Any]) -> Any:
            if self.adapters.pop(body["lora_name"], None) is None:
                return failed(404, "not loaded")
            with LOCK:
                self.experts.forget(body["lora_name"])
            return Response("Success")

        @app.post("/v1/embeddings")
        def embeddings(body: dict[str, Any]) -> Any:
            model = self.experts.backbone
            rows = [model.model.base_model(torch.tensor([row])).last_hidden_state[0] for row in body["input"]]
            means = [torch.nn.functional.normalize(row.mean(0), dim=-1).tolist() for row in rows]
            return {"data": [{"index": i, "embedding": row} for i, row in enumerate(means)]}

        @app.post("/v1/completions")
        def completions(body: dict[str, Any]) -> Any:
            if self.status != 200:
                return failed(self.status, "as it was told to")
            name = body["model"]
            if name != "own" and name not in self.adapters:
                return failed(404, f"The model `{name}` does not exist.")
            if "prompt_embeds" in body and not self.embeds:
                return failed(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
            length = len(self._prompt(body))
            if length + body["max_tokens"] > 512:
                return failed(400, f"This model's maximum context length is 512 tokens, not {length}.")
            pieces = self._pieces(body, None if name == "own" else name)
            if self.odd and body.get("stream"):
                return StreamingResponse(_oddly(self.odd, pieces), media_type="text/event-stream")
            if not body.get("stream"):
                return self._whole(body, list(pieces), None if name == "own" else name)
            return StreamingResponse(_events(pieces), media_type="text/event-stream")

        return app

    def _prompt(self, body: dict[str, Any]) -> torch.Tensor:
        if "prompt_embeds" in body:
            raw = io.BytesIO(base64.b64decode(body["prompt_embeds"]))
            return torch.load(raw, weights_only=True)
        return self.experts.backbone.embed(body["prompt"])

    def _pieces(self, body: dict[str, Any], adapter: str | None) -> Iterator[dict[str, Any]]:
        """Continue a prompt, a token at a time, by the plain forward pass."""
        embeds, model = self._prompt(body), self.experts.backbone
        stops = {*body.get("stop_token_ids", ()), *model.stops}
        for number in range(body["max_tokens"]):
            if number == self.stops_after:
                return
            time.sleep(self.delay)
            logits = self._logits(embeds, adapter)[-1].log_softmax(-1)
            id = int(logits.argmax())
            best = logits.topk(max(1, body.get("logprobs") or 0))
            ended = "stop" if id in stops else "length" if number + 1 == body["max_tokens"] else None
            told = {
                f"token_id:{i}": c for i, c in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            }
            yield {
                "index": 0,
                "token_ids": [id],
                "text": "a line\u2028ends\x85here",
                "logprobs": {"token_logprobs": [float(logits[id])], "top_logprobs": [told]},
                "finish_reason": ended,
            }
            if ended:
                return
            embeds = torch.cat([embeds, model.embed([id])])

    @torch.no_grad()
    def _logits(self, embeds: torch.Tensor, adapter: str | None) -> torch.Tensor:
        with LOCK, self.experts.using(adapter) as model:
            return model.model(inputs_embeds=embeds[None]).logits[0].float()

    def _whole(self, body: dict[str, Any], pieces: list[dict[str, Any]], adapter: str | None) -> Any:
        said: dict[str, list[Any]] = {"token_logprobs": [], "top_logprobs": []}
        for piece in pieces:
            for column, found in said.items():
                found += piece["logprobs"][column]
        choice = {
            "index": 0,
            "token_ids": [id for piece in pieces for id in piece["token_ids"]],
            "logprobs": said,
            "finish_reason": pieces[-1]["finish_reason"],
        }
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._scored(body, adapter)
        reply: dict[str, Any] = {"choices": [choice]}
        if body.get("kv_transfer_params") and self.states:
            reply["kv_transfer_params"] = {"hidden_states_path": self._leave(body["prompt"], adapter)}
        return reply

    def _scored(self, body: dict[str, Any], adapter: str | None) -> list[Any]:
        ids, top = body["prompt"], body["prompt_logprobs"]
        logits = self._logits(self._prompt(body), adapter).log_softmax(-1)
        steps: list[Any] = [None]
        for row, id in zip(logits, ids[1:], strict=False):
            shown = {int(i) for i in row.topk(max(1, top)).indices} if top else set()
            steps.append({str(i): {"logprob": float(row[i])} for i in {id, *shown}})
        return steps

    @torch.no_grad()
    def _leave(self, ids: list[int], adapter: str | None) -> str:
        """Leave the states of a prompt: of the last layer those before the final norm, as vLLM does."""
        assert self.states
        with LOCK, self.experts.using(adapter) as model:
            seen: list[torch.Tensor] = []
            hook = model.decoder_layers[-1].register_forward_hook(lambda _, __, out: seen.append(_first(out)))
            out = model.model.base_model(torch.tensor([ids]), output_hidden_states=True)
            hook.remove()
        states = [*out.hidden_states[:-1], seen[0]]
        self.count += 1
        file = self.states / f"cmpl-{self.count}.safetensors"
        kept = torch.stack([states[layer][0] for layer in self.layers], 1)
        save_file({"hidden_states": kept.contiguous(), "token_ids": torch.tensor(ids)}, file)
        return f"/elsewhere/{file.name}"


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def _events(pieces: Iterator[dict[str, Any]]) -> Iterator[str]:
    ended = False
    for piece in pieces:
        ended = bool(piece["finish_reason"])
        yield f"data: {json.dumps({'choices': [piece]}, ensure_ascii=False)}\n\n"
    if ended:
        yield "data: [DONE]\n\n"


def _oddly(kind: str, pieces: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Answer as a server does that is stopped, or that is none."""
    if kind == "abort":
        yield f"data: {json.dumps({'choices': [next(pieces) | {'finish_reason': None}]})}\n\n"
        yield f"data: {json.dumps({'choices': [{'token_ids': [], 'finish_reason': 'abort'}]})}\n\n"
    elif kind == "page":
        yield "<html>data: {</html>\n"
    elif kind == "null":
        yield 'data: {"choices": [null]}\n\n'
    yield "data: [DONE]\n\n"


def failed(status: int, message: str) -> JSONResponse:
    """Return an error as vLLM words it."""
    return JSONResponse({"error": {"message": message, "type": "Error", "code": status}}, status)


@contextmanager
def running(fake: FakeVllm) -> Iterator[FakeVllm]:
    """Run a fake on a free port of the loopback until the block ends."""
    with listening(fake.app(), at_once=True) as fake.url:
        yield fake
