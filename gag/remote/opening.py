"""Open a project whose models run on vLLM servers."""

import os
from functools import cache, partial

import torch

from gag.errors import BusyError, GagError, SettingsError
from gag.models.loading import load_config, load_tokenizer
from gag.models.prompts import Prompts
from gag.models.source import portable_name
from gag.models.stored import load_last_norm, load_table
from gag.project.domain import KNOWN_PROMPT, KNOWN_TOKENS, ModelFacts
from gag.project.project import Project
from gag.project.settings import ModelSettings
from gag.remote.encoder import RemoteEncoder
from gag.remote.generation import ASKED, packed
from gag.remote.model import RemoteExperts, RemoteModel
from gag.remote.server import Body
from gag.remote.servers import Servers
from gag.remote.states import SharedStates
from gag.routing.query_encoder import QueryEncoder
from gag.routing.state import general_bank, project_encoder


def open_base(project: Project) -> RemoteModel:
    """Meet the base's servers, and load its token embeddings.

    Raises:
        SettingsError: none answers, or they take no embeddings.
        MismatchError: they run different models.
    """
    settings = project.settings.base
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    table = load_table(settings, project.root).to(dtype)
    prompts = Prompts(load_tokenizer(settings, project.root))
    known = torch.tensor(prompts.plain(KNOWN_PROMPT))
    servers = _servers(project, "base", {"prompt_embeds": packed(table[known])}, project.settings.remote.base)
    return _model(project, settings, servers, prompts, table.shape[1], table)


def open_experts(project: Project) -> RemoteExperts:
    """Meet the expert's servers; errors as `open_base`."""
    settings = project.settings.expert
    prompts = Prompts(load_tokenizer(settings, project.root))
    probe = {"prompt": prompts.plain(KNOWN_PROMPT)}
    servers = _servers(project, "expert", probe, project.settings.remote.expert)
    config = load_config(settings, project.root).get_text_config()
    shared = _shared(project, config.num_hidden_layers)
    model = _model(project, settings, servers, prompts, config.hidden_size, None, shared)
    return RemoteExperts(model, project, partial(_own_servers, project, prompts))


def open_encoder(project: Project, experts: RemoteExperts) -> QueryEncoder:
    """Make the router's query encoder; the expert backbone is asked at a pooling server, if one is named."""
    remote = project.settings.remote
    if project.settings.router.encoder.kind != "expert" or remote.encoder is None:
        return project_encoder(project, lambda: experts.backbone)
    prompts = Prompts(load_tokenizer(project.settings.expert, project.root))
    spec = general_bank(project).facts.encoder
    return RemoteEncoder(remote.encoder, spec, prompts, _key(project), remote.timeout)


def _own_servers(project: Project, prompts: Prompts, domain: str) -> Servers | None:
    """Meet the servers of a domain's own expert, if it has some."""
    urls = project.settings.remote.experts.get(domain)
    if urls is None:
        return None
    try:
        return _servers(project, f"expert of {domain}", {"prompt": prompts.plain(KNOWN_PROMPT)}, urls)
    except SettingsError as error:  # the domain is as it was
        raise BusyError(str(error), 5) from error


def _servers(project: Project, role: str, prompt: Body, urls: tuple[str, ...]) -> Servers:
    probe = {**prompt, **ASKED, "max_tokens": KNOWN_TOKENS, "temperature": 0.0, "logprobs": 2}
    try:
        return Servers(role, urls, probe, _key(project), project.settings.remote.timeout)
    except GagError as error:
        if "prompt_embeds" not in str(error) and "prompt embeds" not in str(error):
            raise
        raise SettingsError(
            f"a server of the base takes no embeddings of this project's base: {error}; start it with "
            "--enable-prompt-embeds and that base"
        ) from error


def _model(
    project: Project,
    settings: ModelSettings,
    servers: Servers,
    prompts: Prompts,
    width: int,
    table: torch.Tensor | None = None,
    shared: SharedStates | None = None,
) -> RemoteModel:
    facts = ModelFacts(
        model=portable_name(settings.model),
        revision=settings.revision,
        fingerprint="",
        width=width,
        known=servers.known,
    )
    listed = load_config(settings, project.root).eos_token_id
    stops = listed if isinstance(listed, list) else [listed]
    ends = frozenset({prompts.end, *(token for token in stops if isinstance(token, int))})
    return RemoteModel(servers, facts, prompts, ends, table, shared)


def _shared(project: Project, count: int) -> SharedStates | None:
    remote = project.settings.remote
    if remote.states is None:
        return None
    if not remote.layers:
        raise SettingsError("remote.states needs remote.layers: the layers whose states the servers leave")
    norm = cache(lambda: load_last_norm(project.settings.expert, project.root))
    return SharedStates(
        folder=project.root / remote.states,
        layers=remote.layers,
        count=count,
        norm=(lambda states: norm()(states)) if count in remote.layers else None,
    )


def _key(project: Project) -> str | None:
    name = project.settings.remote.key_variable
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise SettingsError(f"remote.key_variable names {name}, which is empty; set it to the servers' key")
    return key
