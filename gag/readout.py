"""Read an expert: it writes background knowledge, one forward gives the states, pooling makes slots of them."""

from dataclasses import dataclass

import torch

from gag.backbone import Backbone, pad_left
from gag.config import ReadoutSettings
from gag.errors import SettingsError


@dataclass(frozen=True)
class Readout:
    """What an expert knows of B questions."""

    slots: torch.Tensor  # [B, S, L, De]
    texts: list[str]
    empty: list[bool]  # nothing was written: the slot is the prompt's last token


def check_layers(backbone: Backbone, layers: tuple[int, ...]) -> None:
    """Refuse layers that the backbone does not have, or that the projector cannot read."""
    for layer in layers:
        if not -backbone.layers - 1 <= layer <= backbone.layers:
            raise SettingsError(
                f"readout.layers has {layer}, but {backbone.name} has {backbone.layers} layers; "
                f"choose from {-backbone.layers - 1} to {backbone.layers}"
            )
    if len(layers) != 1:
        raise SettingsError(f"the mlp projector reads one layer, readout.layers has {len(layers)}; name one")


def read(expert: Backbone, questions: list[str], system: str, settings: ReadoutSettings) -> Readout:
    """Let the expert write on each question and pool its states -> slots [B, 1, L, De]."""
    prompts = [expert.prompts.ask_expert(question, system) for question in questions]
    written = write(expert, prompts, settings.max_new_tokens)
    states = read_states(expert, prompts, written, settings.layers)
    slots = torch.stack([pool(rows, settings.pooling) for rows in states])
    return Readout(slots, [expert.prompts.decode(ids) for ids in written], [not ids for ids in written])


def read_all(expert: Backbone, questions: list[str], system: str, settings: ReadoutSettings) -> Readout:
    """Read many questions in batches of like length; the order of the questions is kept."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    batches = [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
    parts = [read(expert, [questions[i] for i in batch], system, settings) for batch in batches]
    back = sorted(range(len(order)), key=order.__getitem__)
    texts = [text for part in parts for text in part.texts]
    empty = [flag for part in parts for flag in part.empty]
    return Readout(torch.cat([part.slots for part in parts])[back], [texts[i] for i in back], [empty[i] for i in back])


def write(expert: Backbone, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Decode background knowledge greedily; a budget of 0 writes nothing."""
    if max_new_tokens == 0:
        return [[] for _ in prompts]
    return expert.generate(pad_left([expert.embed(ids) for ids in prompts]), max_new_tokens)


@torch.no_grad()
def read_states(
    expert: Backbone, prompts: list[list[int]], written: list[list[int]], layers: tuple[int, ...]
) -> list[torch.Tensor]:
    """Return, per question, the states of the written tokens (or of the prompt's last one): B x [T, L, De].

    The state belongs to the token itself. Layers index hidden_states: 0 is the embedding, -1 is after the final norm.
    """
    inputs = pad_left([expert.embed(prompt + ids) for prompt, ids in zip(prompts, written, strict=True)])
    decoder = expert.model.get_decoder()
    hidden = decoder(
        inputs_embeds=inputs.embeds,
        attention_mask=inputs.mask,
        position_ids=inputs.positions,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    states = torch.stack([hidden[layer] for layer in layers], dim=2)  # [B, T, L, De]
    return [row[-max(len(ids), 1) :] for row, ids in zip(states, written, strict=True)]


def pool(states: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool one question's states to a slot: [T, L, De] -> [1, L, De]."""
    return states[-1:] if pooling == "last" else states.mean(0, keepdim=True)
