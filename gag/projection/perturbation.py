"""What training changes of its rows at each step, so that alignment learns to read slots, not its rows.

Noise moves slots. Substitution puts another token in the place of one that stands in a slot and in the
answer, in both: what the slots hold is to be repeated, whatever it is.
"""

from collections import Counter
from functools import cached_property
from typing import NamedTuple

import torch

from gag.models.backbone import Backbone
from gag.project.hyperparameters import AlignSettings
from gag.project.keys import stage_key
from gag.projection.alignment import Row, Split
from gag.projection.projector import used

FAMILIAR = 0.05  # share of the answers: words in more of them are how one speaks, and stay
EQUAL = 0.01  # of a token's largest number: a slot this close to its embedding is that token


class Kind(NamedTuple):
    """What a token has in common with those that may stand in its place."""

    spaced: bool  # a space stands before it
    digits: bool
    ascii: bool
    upper: bool  # its first letter
    single: bool  # one character


class Perturbation:
    """Draws what a step trains on.

    Args:
        base: the base, whose tokens are put into slots.
        train: the rows.
        settings: of alignment: its noise, its share of substituted tokens, its seed.
    """

    def __init__(self, base: Backbone, train: Split, settings: AlignSettings):
        self._base, self._train, self._settings = base, train, settings
        self._noise = settings.noise * train.slots.float().std((0, 1), correction=0)  # [L, De]

    def draw(self, batch: list[int], step: int) -> dict[int, tuple[Row, torch.Tensor]]:
        """Return the rows of a batch with their slots [S, L, De], as a step trains on them."""
        rows, slots = [self._train.rows[i] for i in batch], self._train.slots[batch].float()
        if self._settings.substitute:
            generator = self._generator("substitute", step)
            pairs = [self._substituted(*pair, generator) for pair in zip(rows, slots, strict=True)]
            rows, slots = [row for row, _ in pairs], torch.stack([own for _, own in pairs])
        if self._settings.noise:
            noise = self._noise * torch.randn(slots.shape, generator=self._generator("noise", step))
            slots = slots + noise * used(slots)[..., None, None]
        return dict(zip(batch, zip(rows, slots, strict=True), strict=True))

    def _substituted(
        self, row: Row, slots: torch.Tensor, generator: torch.Generator
    ) -> tuple[Row, torch.Tensor]:
        """Exchange some of the answer's tokens for others of their kind, in slots [S, 1, Db] and text."""
        asked = {self._pieces[token].strip() for token in row.prompt.before}
        swapped: dict[int, int] = {}
        for token in dict.fromkeys(row.answer):
            kind = self._kinds[token]
            if kind is None or token in self._familiar or self._pieces[token].strip() in asked:
                continue
            there = self._holding(slots, token)
            if there.any() and float(torch.rand((), generator=generator)) < self._settings.substitute:
                others = self._alike[kind]
                swapped[token] = others[int(torch.randint(len(others), (), generator=generator))]
                slots = torch.where(there[:, None, None], self._embedding(swapped[token]), slots)
        answer, taught = ([swapped.get(token, token) for token in ids] for ids in (row.answer, row.taught))
        return Row(row.prompt, answer, taught), slots

    def _holding(self, slots: torch.Tensor, token: int) -> torch.Tensor:
        """Say which slots [S, 1, Db] hold a token's embedding [S]."""
        own = self._embedding(token)
        return ((slots - own).abs().amax((1, 2)) <= EQUAL * own.abs().max()) & used(slots[None])[0]

    def _embedding(self, token: int) -> torch.Tensor:
        return self._base.embeddings[token].detach().float().cpu()

    @cached_property
    def _pieces(self) -> list[str]:
        """The text of each token, with the space before it."""
        return self._base.prompts.vocabulary(len(self._base.embeddings))

    @cached_property
    def _kinds(self) -> list[Kind | None]:
        return [_kind(piece) for piece in self._pieces]

    @cached_property
    def _alike(self) -> dict[Kind, list[int]]:
        found: dict[Kind, list[int]] = {}
        for token, kind in enumerate(self._kinds):
            if kind is not None:
                found.setdefault(kind, []).append(token)
        return found

    @cached_property
    def _familiar(self) -> set[int]:
        """The tokens, digits apart, that many of the different answers hold."""
        different = {tuple(row.answer) for row in self._train.rows}
        counts = Counter(token for answer in different for token in set(answer))
        most = max(1, FAMILIAR * len(different))
        return {t for t, count in counts.items() if count > most and not self._pieces[t].strip().isdigit()}

    def _generator(self, what: str, step: int) -> torch.Generator:
        return seeded_generator(self._settings.seed, what, step)


def seeded_generator(seed: int, what: str, number: int) -> torch.Generator:
    """Return a generator that depends on a seed, a purpose and a number alone."""
    name = stage_key(seed=seed, what=what, number=number)
    return torch.Generator().manual_seed(int(name[:15], 16))


def _kind(piece: str) -> Kind | None:
    """Return the kind of a token's text; None for one that is no word or number, which stays."""
    text = piece.strip()
    if not (text.isalpha() or text.isdigit()):
        return None
    return Kind(piece != text, text.isdigit(), text.isascii(), text[0].isupper(), len(text) == 1)
