"""Take what the method's published code trained: a stage-I checkpoint, a projector, and prototypes.

They become a domain folder such as `gag build` writes, but for what is not in them: the readouts' validation
loss, and of the router's statistics all but the centres. Files of torch are read as tensors alone.

Source: 360CVGroup/GAG, its first (mlp) and fourth version (gated residual); parameters renamed, not changed.
"""

import datetime
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gag.errors import ArtifactError, MismatchError, SettingsError
from gag.models.backbone import Backbone
from gag.models.loading import load_backbone
from gag.planning.limits import check_models
from gag.planning.models import Blueprint
from gag.project.artifacts import MANIFEST, SCHEMA, locked, read_manifest, writing
from gag.project.domain import CARD, DOMAIN, EXPERT, PROJECTOR, DomainFacts, ScoreFacts
from gag.project.hyperparameters import ReadoutSettings
from gag.project.keys import stage_key
from gag.project.progress import say
from gag.project.project import Project
from gag.project.rows import digest
from gag.project.settings import GENERAL, PromptSettings
from gag.project.tensors import all_finite, load_pickled, load_weights, save_tensors
from gag.projection.modules import load_projector
from gag.routing.bank import MemoryBank, Sample
from gag.routing.state import project_encoder
from gag.stages.adapt import take_expert
from gag.stages.card import card
from gag.stages.prototypes import IMPORTED
from gag.stages.prototypes import folder as bank_folder
from gag.training.checkpoint import check_source, weights_name

_MIX, _LAYERS = "layer_mixer_logits", ("weight", "bias")
_MLP = {"projector.projector.0": "inner", "projector.projector.2": "outer"}
_GATED = {
    "projector.input_norm": "norm_in",
    "projector.input_proj": "linear",
    "projector.norm": "norm_out",
    "projector.gate.0": "gate",
    "projector.update.0": "inner",
    "projector.update.2": "outer",
}
_KINDS = {
    "mlp": {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in _MLP.items() for part in _LAYERS},
    "gated_residual": {_MIX: "mix"}
    | {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in _GATED.items() for part in _LAYERS},
}
Weights = dict[str, torch.Tensor]
_EMBEDDINGS = "model.embed_tokens.weight"
_ROWS = 1000  # of the embeddings that are compared
_NEAR = 1e-2  # of an embedding's size: it was stored in half precision, or in another one


def import_bank(project: Project, domain: str, prototypes: Path) -> Path:
    """Take prototypes as the bank of general, or of a domain that has no expert; return its folder.

    Raises:
        SettingsError: `router.rule` is another than ppr, which is the one that centres alone can serve, or
            gag.yaml describes no such domain.
        ArtifactError: the file holds no prototypes, or a bank of questions is there.
        MismatchError: they are another encoder's.
    """
    if domain != GENERAL:
        project.described(domain)
    if domain in project.present():
        raise ArtifactError(
            f"domains/{domain} is already there, with a bank; `gag domains remove {domain}` first"
        )
    bank, target = _bank(project, domain, prototypes), bank_folder(project, domain)
    with locked(project.root / "runs"):
        if (target / MANIFEST).is_file() and not read_manifest(target).get(IMPORTED):
            where = target.relative_to(project.root)
            raise ArtifactError(f"{where} holds a bank of {domain}'s questions; remove that folder first")
        facts: dict[str, object] = {"key": stage_key(imported=digest(prototypes)), IMPORTED: prototypes.name}
        with writing(target, facts) as temporary:
            facts["bank"] = bank.save(temporary).model_dump(mode="json")
    say(f"import {domain}: {len(bank.centres)} centres of {prototypes.name}")
    return target


def import_domain(project: Project, domain: str, expert: Path, projector: Path, prototypes: Path) -> Path:
    """Take a domain's expert, projector and prototypes; return its folder.

    Args:
        project: its gag.yaml describes the domain: its prompts, with the base's turn (`layout`) as it was.
        domain: the domain's name.
        expert: the folder of a stage-I checkpoint: full weights or an adapter.
        projector: `ckpt.pth`, another file of weights, or the folder of whole weights.
        prototypes: the file of the domain's prototypes.

    Raises:
        SettingsError: the settings describe another readout or projector, or another rule than ppr.
        ArtifactError: a file is cut short, or holds more than tensors, or the domain is already there.
        MismatchError: it was trained for other models.
    """
    prompts, settings, root = project.described(domain).prompts, project.settings, project.root
    target = project.domain(domain)
    _refuse_present(target)
    adapter = check_source(expert, None, settings.readout.folds)
    check_models(settings, Blueprint(settings.base, root, "cpu"), Blueprint(settings.expert, root, "cpu"))
    kind, weights, embeddings = _projector(projector, settings.readout)
    if kind != settings.align.projector:
        raise SettingsError(
            f"{projector.name} holds a projector of kind {kind}, align.projector is "
            f"{settings.align.projector}; set preset: {'v1' if kind == 'mlp' else 'v4'} in gag.yaml"
        )
    if prompts.layout == PromptSettings().layout:
        say(
            f"import {domain}: domains.{domain}.prompts.layout is the default; the published code trained "
            "with another one (examples/paper/README.md)"
        )
    bank = _bank(project, domain, prototypes)
    base = load_backbone(settings.base, root)
    _check_base(projector, embeddings, base)
    experts_base = load_backbone(settings.expert, root).facts
    made_from = {
        "expert": weights_name(expert), "projector": _named(projector), "prototypes": _named(prototypes)
    }  # fmt: skip
    facts = DomainFacts(
        schema_version=SCHEMA,
        key=stage_key(imported=made_from, prompts=prompts.model_dump(), readout=settings.readout.key()),
        name=domain,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        base=base.facts,
        expert=experts_base,
        tuning="lora" if adapter else "full",
        projector=kind,
        readout=settings.readout,
        common={},
        prompts=prompts,
        bank=bank.facts,
        data=made_from,
        scores=ScoreFacts(val_loss=None, transfer=None),
    )
    described = facts.model_dump(mode="json", exclude={"schema_version"})
    with locked(root / "runs"):
        _refuse_present(target)
        with writing(target, described, DOMAIN) as temporary:
            take_expert(settings.expert, root, expert, temporary / EXPERT, domain)
            half = base.model.dtype
            save_tensors(temporary / PROJECTOR, {name: tensor.to(half) for name, tensor in weights.items()})
            load_projector(temporary, kind, settings.readout, experts_base.width, base.width)
            bank.save(temporary)
            (temporary / CARD).write_text(card(facts), encoding="utf-8")
    say(f"import {domain}: domains/{domain} is ready; `gag evaluate {domain}` says how well it answers")
    return target


def _refuse_present(target: Path) -> None:
    if target.exists():
        name = target.name
        raise ArtifactError(f"domains/{name} is already there; run `gag domains remove {name}` first")


def _projector(path: Path, readout: ReadoutSettings) -> tuple[str, Weights, torch.Tensor | None]:
    """Find a projector in a file, or a folder of whole weights -> kind, weights by our names, embeddings."""
    wanted = {_EMBEDDINGS}.union(*_KINDS.values())
    found: dict[str, torch.Tensor] = {}
    for file in _weights(path):
        found |= {name: tensor for name, tensor in _read(file, wanted).items() if name in wanted}
    embeddings = found.pop(_EMBEDDINGS, None)
    if _MIX not in found and "projector.gate.0.weight" in found:  # without a mix, layers count alike
        found[_MIX] = torch.zeros(readout.slots, len(readout.layers))
    for kind, names in _KINDS.items():
        if found.keys() == names.keys():
            weights = {ours: found[theirs].float() for theirs, ours in names.items()}
            if odd := sorted(name for name, tensor in weights.items() if not all_finite(tensor)):
                raise ArtifactError(f"{path.name} holds values that are no numbers (in {odd[0]})")
            return kind, weights, embeddings
    held = ", ".join(sorted(found)) or "no tensor of a projector"
    raise ArtifactError(
        f"{path.name} holds no projector of the published code's two kinds ({held}); point at its ckpt.pth, "
        "or at the folder that stage II wrote"
    )


def _named(path: Path) -> str:
    """Name a file, or a folder's weights, by content."""
    return (
        digest(path) if path.is_file() else stage_key(**{file.name: digest(file) for file in _weights(path)})
    )


def _weights(path: Path) -> list[Path]:
    """Return the files of weights at a path."""
    if path.is_file():
        return [path]
    for pattern in ("ckpt.pth", "*.safetensors", "pytorch_model*.bin"):
        if found := sorted(path.glob(pattern)):
            return found
    raise ArtifactError(f"{path.name} holds no weights; point at ckpt.pth, or at the folder of stage II")


def _read(file: Path, names: set[str]) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        return load_weights(file)
    try:
        with safe_open(file, "pt") as stored:
            return {name: stored.get_tensor(name) for name in names & set(stored.keys())}
    except SafetensorError as error:
        raise ArtifactError(f"{file.name} is cut short; copy it again") from error


def _check_base(path: Path, trained: torch.Tensor | None, base: Backbone) -> None:
    """Refuse a projector whose own copy of the base's embeddings is another base's.

    The published code adds a row, and drops those that no token has.
    """
    if trained is None:
        return
    ours: torch.Tensor = base.model.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType]
    rows = min(len(trained) - 1, len(ours))
    same = trained.ndim == 2 and rows > 0 and trained.shape[1] == ours.shape[1]
    if same:
        some = slice(0, rows, max(1, rows // _ROWS))
        mine, theirs = ours[some].detach().float().cpu(), trained[some].float()
        same = bool((mine - theirs).norm() <= _NEAR * mine.norm())
    if not same:
        raise MismatchError(
            f"{path.name} was trained for another base: its embeddings are not this one's; name that base in "
            "gag.yaml"
        )


def _bank(project: Project, domain: str, path: Path) -> MemoryBank:
    """Read a file of prototypes as a bank of centres alone."""
    if project.settings.router.rule != "ppr":
        raise SettingsError(
            f"router.rule is {project.settings.router.rule}, and {path.name} holds centres alone; set "
            f"router.rule: ppr, or make a bank of questions with `gag prototypes {domain}`"
        )
    held = load_pickled(path)
    centres = held.get("prototypes")
    if not isinstance(centres, torch.Tensor) or centres.layout != torch.strided or centres.ndim != 2:
        raise ArtifactError(f"{path.name} holds no prototypes of shape (centres, width)")
    if not centres.is_floating_point() or not len(centres):
        raise ArtifactError(f"{path.name} holds no prototypes of shape (centres, width)")
    if centres.device.type == "meta" or not all_finite(centres) or not centres.norm(dim=1).all():
        raise ArtifactError(f"{path.name} holds prototypes that are no directions")
    spec = project_encoder(project).spec
    if centres.shape[1] != spec.width:
        raise MismatchError(
            f"{path.name} was made by {held.get('encoder_name_or_path', 'an encoder')} of width "
            f"{centres.shape[1]}, router.encoder here has {spec.width}; name that encoder in gag.yaml"
        )
    centres, width = torch.nn.functional.normalize(centres.float(), dim=1), spec.width
    return MemoryBank(
        centres=centres,
        sizes=torch.ones(len(centres)),
        mean=centres.mean(0),
        count=len(centres),
        encoder=spec,
        lengths=torch.ones(len(centres)),
        scatter=torch.zeros(width, width),
        sample=Sample(torch.empty(0, width), torch.empty(0).int(), torch.empty(0).int()),
    )
