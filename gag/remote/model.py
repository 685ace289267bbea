"""A model that runs elsewhere, and the experts over it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from gag.errors import BusyError, MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.models.experts import ADAPTER
from gag.models.language_model import Likely, stacked
from gag.models.loading import load_backbone
from gag.models.prompts import Prompts
from gag.project.domain import EXPERT, ModelFacts, read_known, same_answer
from gag.project.progress import say
from gag.project.project import Project
from gag.remote.generation import ASKED, RemoteGenerator
from gag.remote.replies import prompt_chances, prompt_steps, tokens_of
from gag.remote.server import Body
from gag.remote.servers import Servers
from gag.remote.states import ASKING, SharedStates

_SCORING = (  # vLLM 0.32 ends with an error where an adapter may lie over the output layer
    "it was to score a prompt: start it with --lora-target-modules and all of its layers but lm_head"
)


@dataclass(frozen=True)
class RemoteModel:
    """A model on vLLM servers; the `LanguageModel` over HTTP.

    Attributes:
        servers: where it runs.
        facts: its name, and what it answers to a known prompt.
        prompts: the method's prompts in its tokens.
        stops: tokens that end a text.
        table: its token embeddings [V, D], where vectors are injected into it.
        shared: where its states are left, if they are.
        adapter: the expert that it is, if one.
    """

    servers: Servers
    facts: ModelFacts
    prompts: Prompts
    stops: frozenset[int]
    table: torch.Tensor | None = None
    shared: SharedStates | None = None
    adapter: str = ""

    @property
    def positions(self) -> int | None:
        """The most tokens that its servers take."""
        return self.servers.positions

    @property
    def device(self) -> torch.device:
        """Where its projectors are: here."""
        return torch.device("cpu")

    @property
    def embeddings(self) -> torch.Tensor:
        """What the decoder takes for each token [V, D]."""
        if self.table is None:
            raise SettingsError("the embeddings of a remote expert are not here; inject into the base")
        return self.table

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Embed token ids -> [T, D]."""
        return self.embeddings[torch.tensor(ids, dtype=torch.long)]

    def named(self, adapter: str) -> "RemoteModel":
        """Return it with an expert's adapter, or without any."""
        return replace(self, adapter=adapter)

    def generator(
        self, rows: int | None = None, tokens: int | None = None, prefill: int | None = None
    ) -> RemoteGenerator:
        """Return what continues prompts; how many tokens go on together is the servers' own business."""
        return RemoteGenerator(self.servers, self.embed, self.stops, rows, self.adapter)

    def read_states(
        self, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """Return the states of written tokens, or of a prompt's last one: B x [T, L, D].

        Raises:
            SettingsError: the servers leave no states, or not those of these layers.
        """
        if self.shared is None:
            raise SettingsError(
                "readout.space: hidden reads states, and the expert's servers leave none; start them with "
                "the hidden-states connector and name its folder under remote.states, or take preset "
                "vocabulary"
            )
        rows = [prompt + ids for prompt, ids in zip(prompts, written, strict=True)]
        found = self._asked([_once(row) | ASKING for row in rows])
        states = [self.shared.take(choice, row, layers) for choice, row in zip(found, rows, strict=True)]
        return [row[-max(len(ids), 1) :] for row, ids in zip(states, written, strict=True)]

    def foretold(self, prompts: list[list[int]], written: list[list[int]], count: int) -> list[Likely]:
        """Return what is likeliest behind each written token, or behind a prompt's last one: B x [T, K]."""
        rows = [prompt + ids for prompt, ids in zip(prompts, written, strict=True)]
        found = self._scored([_once(row) | {"prompt_logprobs": count, "logprobs": count} for row in rows])
        likely = []
        for choice, ids in zip(found, written, strict=True):
            last = tokens_of(choice, count)[0][2]
            steps = [*prompt_steps(choice, count), *([last] if last else [])][-max(len(ids), 1) :]
            likely.append(stacked(steps))
        return likely

    def log_probabilities(
        self, prompts: Sequence[list[int] | torch.Tensor], texts: Sequence[list[int]], tokens: int
    ) -> list[torch.Tensor]:
        """Return the log-probability of each token of texts behind their prompts, in nats: B x [T].

        Raises:
            SettingsError: a prompt is embeddings: vLLM scores token ids alone.
        """
        if not all(isinstance(prompt, list) for prompt in prompts):
            raise SettingsError(
                "a server scores no text behind injected vectors; measure evidence with engine: transformers"
            )
        rows = [[*prompt, *ids] for prompt, ids in zip(prompts, texts, strict=True) if ids]
        found = iter(self._scored([_once([int(id) for id in row]) | {"prompt_logprobs": 0} for row in rows]))
        chances = []
        for prompt, ids in zip(prompts, texts, strict=True):
            row = [int(id) for id in (*prompt, *ids)]
            chances.append(prompt_chances(next(found), row)[-len(ids) :] if ids else torch.empty(0))
        return chances

    def _asked(self, bodies: list[Body]) -> list[Body]:
        return self.servers.complete(bodies, self.adapter)

    def _scored(self, bodies: list[Body]) -> list[Body]:
        try:
            return self._asked(bodies)
        except BusyError as error:
            raise BusyError(f"{error}; {_SCORING}", error.seconds) from error


def _once(ids: list[int]) -> Body:
    """Ask for a prompt to be read, and for one token."""
    return {"prompt": ids, "max_tokens": 1, "temperature": 0.0, **ASKED}


class RemoteExperts:
    """The experts on the expert's servers: one LoRA adapter each, all of them in one batch.

    A domain's expert with weights of its own has servers of its own.

    Args:
        model: the backbone on its servers.
        project: whose experts they are.
        own: meets the servers of a domain's own expert, if it has some.
    """

    def __init__(self, model: RemoteModel, project: Project, own: Callable[[str], Servers | None]):
        self._model, self._project, self._own = model, project, own

    @property
    def facts(self) -> ModelFacts:
        """The backbone's facts."""
        return self._model.facts

    @property
    def backbone(self) -> Backbone:
        """The backbone as published, loaded here for what no server does."""
        return self._backbone

    @cached_property
    def _backbone(self) -> Backbone:
        say(f"the expert backbone {self.facts.model} is loaded here too: its states are asked for")
        return load_backbone(self._project.settings.expert, self._project.root)

    def load(self, name: str, folder: Path) -> None:
        """Have an expert's adapter at every server, or meet the servers of its own.

        Raises:
            MismatchError: it is no adapter and has no servers, or they run other weights.
            ArtifactError: a server refuses it.
            BusyError: none answers.
        """
        domain = name.partition("@")[0]
        if servers := self._own(domain):
            if not same_answer(read_known(folder), servers.known):
                raise MismatchError(
                    f"the servers of {domain} under remote.experts answer otherwise than its expert; start "
                    "them with its weights (`gag domains merge` writes those of an adapter)"
                )
            self._model.servers.stand_in(name, servers)
            return
        if not (folder / ADAPTER).is_file():
            raise MismatchError(
                f"the expert of {domain} is a fully tuned model: start a vLLM server of {EXPERT}/ in its "
                f"folder and name it under remote.experts.{domain}, or answer with engine: transformers"
            )
        there = self._project.settings.remote.project
        if there is not None:
            folder = Path(there) / folder.resolve().relative_to(self._project.root.resolve())
        self._model.servers.load(name, str(folder.resolve() if there is None else folder))

    def forget(self, name: str) -> None:
        """Take an expert from the servers."""
        self._model.servers.unload(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[RemoteModel]:
        """Yield an expert that is loaded, or without a name the backbone as published."""
        yield self._model.named(name or "")

    def mixed(self, name: str) -> RemoteModel:
        """Return the backbone, where each request names the expert that it is of."""
        return self._model
