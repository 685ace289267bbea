"""What the models cannot do with a domain's rows and settings, said before anything is spent."""

from gag.errors import DataError, SettingsError
from gag.models.dry_run import check_tokens
from gag.planning.models import Blueprint
from gag.planning.workload import AdaptLengths, AlignLengths, adapt_lengths, align_lengths
from gag.project.inputs import DomainInputs
from gag.project.settings import ProjectSettings
from gag.readout.states import check_layers
from gag.readout.vocabulary import check_shared


def check_limits(inputs: DomainInputs) -> None:
    """Refuse a domain whose rows or settings go beyond its models, from configs and tokenizers alone.

    Raises:
        SettingsError: a layer that is not there, or a budget beyond the models' positions.
        MismatchError: a tokenizer that is not of its model, or models that do not share their tokens.
        DataError: a row longer than the models' positions.
    """
    base = Blueprint(inputs.settings.base, inputs.root, "cpu")
    expert = Blueprint(inputs.settings.expert, inputs.root, "cpu")
    check_models(inputs.settings, base, expert)
    align = align_lengths(inputs, base.prompts, expert.prompts)
    check_lengths(inputs, base, expert, align, adapt_lengths(inputs.taught, expert.prompts, inputs.prompts))


def check_models(settings: ProjectSettings, base: Blueprint, expert: Blueprint) -> None:
    """Refuse layers, tokens and vocabularies that the models do not have."""
    for model in (base, expert):
        check_tokens(model.name, model.prompts, model.vocabulary)
    readout = settings.readout
    check_layers(expert.name, expert.layers, readout.layers)
    inner = [layer for layer in readout.layers if layer not in (-1, expert.layers)]
    if inner and expert.state_width != expert.width:
        raise SettingsError(
            f"readout.layers has {inner[0]}, where {expert.name} is {expert.state_width} wide and its "
            f"embeddings are {expert.width}; set readout.layers: [-1]"
        )
    if readout.space == "vocabulary" and readout.select == "segments":
        check_shared(expert.name, expert.tokens, base.tokens)


def check_lengths(
    inputs: DomainInputs, base: Blueprint, expert: Blueprint, align: AlignLengths, adapt: AdaptLengths
) -> None:
    """Refuse what is longer than the positions of a model."""
    settings = inputs.settings
    if expert.positions is not None:
        room = expert.positions - max(align.requests)
        _check_budget(
            expert, max(align.requests), "readout.max_new_tokens", settings.readout.max_new_tokens, room
        )
        longest = min(max(adapt.rows), settings.adapt.max_tokens)
        if longest > expert.positions:
            raise SettingsError(
                f"the longest row of {inputs.name} is {longest} tokens long, and {expert.name} has positions "
                f"for {expert.positions}; set adapt.max_tokens: {expert.positions}, or shorten the rows"
            )
        if inputs.corpus and settings.pretrain.block_tokens > expert.positions:
            raise SettingsError(
                f"pretrain.block_tokens is {settings.pretrain.block_tokens}, and {expert.name} has positions "
                f"for {expert.positions}; set it to {expert.positions} or less"
            )
    if base.positions is not None:
        prompt = align.longest_before + settings.readout.slots + align.after
        if settings.align.distill:
            taught = align.longest_before + align.after + align.longest_answer
            room = base.positions - taught
            _check_budget(base, taught, "readout.max_new_tokens", settings.readout.max_new_tokens, room)
        if prompt + align.longest_answer > base.positions:
            raise DataError(
                f"the longest question and answer of {inputs.name} take {prompt + align.longest_answer} "
                f"tokens of the base's prompt, and {base.name} has positions for {base.positions}; shorten "
                "the rows, or name a base with more"
            )
        budget = settings.decoding.max_new_tokens
        _check_budget(base, prompt, "decoding.max_new_tokens", budget, base.positions - prompt)


def _check_budget(model: Blueprint, prompt: int, key: str, budget: int, room: int) -> None:
    if budget <= room:
        return
    cure = f"set {key}: {room} or less" if room > 0 else "shorten the questions"
    raise SettingsError(
        f"{key} is {budget}, and {model.name} has positions for {model.positions} tokens, of which the "
        f"longest prompt takes {prompt}; {cure}, or name a model with more"
    )
