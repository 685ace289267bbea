"""The HTTP server: its routes, and how errors, keys, sizes and request ids are handled on each."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gag.engine.engine import ProjectGAG
from gag.errors import GagError
from gag.project.serve_settings import ServeSettings
from gag.routing.turns import restricted, route_turns
from gag.serving.admin import domain_routes
from gag.serving.errors import RequestError, refused
from gag.serving.keys import Keys
from gag.serving.replies import Chat, Completion, Response
from gag.serving.requests import ChatRequest, CompletionRequest, ResponsesRequest, Text, checked, turns_of
from gag.serving.requests import Message as ChatMessage
from gag.serving.server import Allowed, Here, Server
from gag.serving.streaming import Json, error_body
from gag.serving.told import route_facts

VERSION = version_of("gag")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ROUTED = 64  # questions that /v1/route takes at once


class RouteRequest(BaseModel):
    """Of /v1/route: questions, or a conversation."""

    model_config = ConfigDict(extra="forbid")

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=ROUTED)] | None = None
    messages: list[ChatMessage] | None = None


routes = APIRouter(default_response_class=Json)


@routes.post("/v1/chat/completions")
async def chat(http: HttpRequest, body: ChatRequest, server: Here, key: Allowed) -> HttpResponse:
    """Answer a conversation's last question."""
    return await server.answer(http, key, body, Chat, body.usage_in_stream)


@routes.post("/v1/completions")
async def completions(http: HttpRequest, body: CompletionRequest, server: Here, key: Allowed) -> HttpResponse:
    """Answer each prompt as a question."""
    return await server.answer(http, key, body, Completion, body.usage_in_stream)


@routes.post("/v1/responses")
async def responses(http: HttpRequest, body: ResponsesRequest, server: Here, key: Allowed) -> HttpResponse:
    """Answer without keeping anything."""
    return await server.answer(http, key, body, Response)


@routes.post("/v1/route")
async def route(body: RouteRequest, server: Here, key: Allowed) -> HttpResponse:
    """Say where questions would go, and why."""
    if (body.input is None) == (body.messages is None):
        raise RequestError(400, "give input, or messages", "input")
    if body.messages is not None:
        turns = turns_of(body.messages, "messages")
        chats = [[text for role, text in turns if role == "user"][-server.settings.turns :]]
    else:
        given = [body.input] if isinstance(body.input, str) else body.input or []
        chats = [[checked(text, "input")] for text in given]
    found = await server.on_engine(lambda: route_turns(server.gag.router, chats))
    data = [route_facts(restricted(route, key.domains)) | {"asked": asked} for route, asked in found]
    return Json({"object": "list", "data": data})


@routes.get("/v1/models")
async def models(server: Here, key: Allowed) -> HttpResponse:
    """List what may be asked."""
    return Json({"object": "list", "data": [_model(name) for name in server.models(key)]})


@routes.get("/v1/models/{name:path}")
async def model(name: str, server: Here, key: Allowed) -> HttpResponse:
    """Describe one of them."""
    server.domain(name, key)
    return Json(_model(name))


@routes.get("/health")
@routes.get("/healthz")
async def health(server: Here) -> HttpResponse:
    """Say whether the process can answer at all."""
    return Json({"status": "ok"}) if server.owner.alive else Json({"status": "dead"}, 503)


@routes.get("/readyz")
async def ready(server: Here) -> HttpResponse:
    """Say whether questions are taken now."""
    if server.owner.draining or not server.owner.alive:
        status = "stopping" if server.owner.draining else "dead"
        return Json({"status": status}, 503, headers={"Retry-After": "5"})
    return Json({"status": "ready"})


@routes.get("/version")
async def version(server: Here) -> HttpResponse:
    """Say which version this is, of what."""
    return Json({"version": VERSION, "base": server.gag.base.facts.model})


@routes.get("/metrics")
async def metrics(server: Here) -> HttpResponse:
    """Tell Prometheus the figures."""
    return HttpResponse(server.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(name: str) -> dict[str, Any]:
    parent = None if name == "gag" else "gag"
    return {"id": name, "object": "model", "created": 0, "owned_by": "gag", "parent": parent}


def make_app(gag: ProjectGAG, settings: ServeSettings, keys: Keys) -> FastAPI:
    """Make the application; the engine's thread begins with it and ends with it."""
    server = Server(gag, settings, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await asyncio.to_thread(server.owner.stop, 0.0)

    app = FastAPI(title="GAG", version=VERSION, lifespan=lifespan, redoc_url=None, docs_url=None)
    app.state.server = server
    app.include_router(routes)
    app.include_router(domain_routes)
    _errors(app, server)
    if settings.ui:
        from gag.serving.playground import add_playground  # it takes a second to import

        add_playground(app, server)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(_Frame, limit=1024 * settings.body_kb)
    return app


def _errors(app: FastAPI, server: Server) -> None:
    def reply(error: RequestError) -> HttpResponse:
        server.metrics.refused(error.status)
        return Json(error_body(error), error.status, headers=error.headers)

    @app.exception_handler(RequestError)
    async def request_error(http: HttpRequest, error: RequestError) -> HttpResponse:
        return reply(error)

    @app.exception_handler(GagError)
    async def gag_error(http: HttpRequest, error: GagError) -> HttpResponse:
        return reply(refused(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, error: RequestValidationError) -> HttpResponse:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part != "body"]
        param = ".".join(path) or None
        return reply(
            RequestError(400, f"{param or 'the body'}: {first['msg']}"[:500], param, "invalid_value")
        )

    @app.exception_handler(HTTPException)
    async def http_error(http: HttpRequest, error: HTTPException) -> HttpResponse:
        found = reply(RequestError(error.status_code, str(error.detail)))
        found.headers.update(error.headers or {})
        return found


class _Frame:
    """Around every request: its id, and an end to bodies that are too large."""

    def __init__(self, app: ASGIApp, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        taken = 0

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            await send(message)

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise _too_large(self._limit)
            return message

        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._limit:
            error = _too_large(self._limit)
            await Json(error_body(error), error.status)(scope, receive, named)
            return
        await self._app(scope, limited, named)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413, f"the request is larger than {limit // 1024} KB (serve.body_kb)", code="too_large"
    )
