"""The domains over HTTP: list them, and with an admin's key add, reload and remove them."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response as HttpResponse

from gag.engine.domains import Fit, copy_domain, take_away
from gag.errors import GagError
from gag.project.project import Project
from gag.serving.errors import RequestError
from gag.serving.server import Admin, Allowed, Here, Server
from gag.serving.streaming import Json


class AddRequest(BaseModel):
    """Of POST /v1/domains: a folder in the project, such as incoming/materials."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=1024)


domain_routes = APIRouter(prefix="/v1/domains", default_response_class=Json)


@domain_routes.get("")
def listed(server: Here, key: Allowed) -> HttpResponse:
    """List the domains, what each was built for, and what is wrong with those that fail."""
    names = [name for name in server.gag.domains.known if key.domains is None or name in key.domains]
    fault = {"fault": server.owner.fault} if server.owner.fault else {}
    return Json({"object": "list", "data": [domain_facts(server, name) for name in names]} | fault)


@domain_routes.post("")
def added(body: AddRequest, server: Here, key: Admin) -> HttpResponse:
    """Add a domain's folder that lies in the project; it answers when this returns."""
    fit = Fit(server.gag.base.facts, server.gag.experts.facts, server.gag.encoder.spec)
    return _shown(server, copy_domain(server.gag.project, inside(server.gag.project, body.path), fit))


@domain_routes.post("/{name}/reload")
def reloaded(name: str, server: Here, key: Admin) -> HttpResponse:
    """Look at a domain's folder now, and take up what lies there."""
    _known(server, name)
    return _shown(server, name)


@domain_routes.delete("/{name}")
def removed(name: str, server: Here, key: Admin) -> HttpResponse:
    """Take a domain away; questions that it is being asked are still answered."""
    _known(server, name)
    server.gag.domains.leaving.add(name)
    try:
        server.owner.look()  # first nothing goes there any more
        take_away(server.gag.project, name)
    finally:
        server.gag.domains.leaving.discard(name)
    return Json({"id": name, "object": "domain", "deleted": True})


def _known(server: Server, name: str) -> None:
    if name not in server.gag.domains.known:
        raise RequestError(404, f"no domain {name[:80]!r} here", "name", "domain_not_found")


def _shown(server: Server, name: str) -> HttpResponse:
    """Take up what lies in the folder, load it, and describe it."""
    server.owner.look()
    try:
        server.owner.call(lambda: server.gag.domains.module(name)).result()
    except GagError as error:
        raise RequestError(409, str(error), "name", "domain_refused") from error
    return Json(domain_facts(server, name))


def domain_facts(server: Server, name: str) -> dict[str, Any]:
    """Describe a domain: its state, what it was built for, and how much of its knowledge arrives."""
    domains = server.gag.domains
    about: dict[str, Any] = {"id": name, "object": "domain", "model": f"gag/{name}", "parent": "gag"}
    fault = domains.faults.get(name)
    state = "refused" if name in domains.refused else "loaded" if name in domains.loaded else "ready"
    about |= {"state": state} | ({"fault": fault} if fault else {})
    if state == "refused":
        return about
    facts = domains.facts(name)
    return about | {
        "revision": domains.revision(name),
        "created": facts.created,
        "base": facts.base.model,
        "expert": facts.expert.model,
        "tuning": facts.tuning,
        "vectors": facts.readout.slots,
        "questions": facts.bank.count,
        "transfer": facts.scores.transfer and facts.scores.transfer.transfer,
    }


def inside(project: Project, path: str) -> Path:
    """Return a folder of the project; RequestError: it lies outside, or is not there."""
    root = project.root.resolve()
    try:
        found = (root / path).resolve()
        if found.is_relative_to(root) and found != root and found.is_dir():
            return found
    except (OSError, ValueError):
        pass  # no path at all: the same refusal
    raise RequestError(400, "path is no folder inside the project", "path", "invalid_path")
