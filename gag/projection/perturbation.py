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
        self._places: dict[int, dict[int, list[int]]] = {}  # by row
        self._noise = settings.noise * train.slots.float().std((0, 1), correction=0)  # [L, De]

    def draw(self, batch: list[int], step: int) -> dict[int, tuple[Row, torch.Tensor]]:
        """Return the rows of a batch with their slots [S, L, De], as a step trains on them."""
        rows, slots = [self._train.rows[i] for i in batch], self._train.slots[batch].float()
        if self._settings.substitute:
            rows, slots = self._substituted(batch, slots, self._generator("substitute", step))
        if self._settings.noise:
            noise = self._noise * torch.randn(slots.shape, generator=self._generator("noise", step))
            slots = slots + noise * used(slots)[..., None, None]
        return dict(zip(batch, zip(rows, slots, strict=True), strict=True))

    def _substituted(
        self, batch: list[int], slots: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Row], torch.Tensor]:
        """Exchange some of the answers' tokens for others of their kind, in slots [B, S, 1, Db] and texts."""
        rows, changed = [], []  # (row, slot, its new token)
        for k, i in enumerate(batch):
            row, swapped = self._train.rows[i], {}
            for token, places in self._held(i).items():
                if float(torch.rand((), generator=generator)) < self._settings.substitute:
                    others = self._alike[self._kinds[token]]
                    swapped[token] = others[int(torch.randint(len(others), (), generator=generator))]
                    changed += [(k, slot, swapped[token]) for slot in places]
            answer, taught = (
                [swapped.get(token, token) for token in ids] for ids in (row.answer, row.taught)
            )
            rows.append(Row(row.prompt, answer, taught))
        if changed:
            k, slot, tokens = map(list, zip(*changed, strict=True))
            slots[k, slot, 0] = self._embedded(tokens)  # the step's one look into the base's table
        return rows, slots

    def _held(self, i: int) -> dict[int, list[int]]:
        """Return the tokens of a row's answer that may be exchanged, each with the slots that hold it."""
        if i not in self._places:
            row, slots = self._train.rows[i], self._train.slots[i, :, 0].float()
            asked = {self._pieces[token].strip() for token in row.prompt.before}
            free = [t for t in dict.fromkeys(row.answer) if self._kinds[t] and t not in self._familiar]
            free = [token for token in free if self._pieces[token].strip() not in asked]
            own = self._embedded(free)  # [A, Db]
            close = (slots - own[:, None]).abs().amax(-1) <= EQUAL * own.abs().amax(-1, keepdim=True)
            places = [row.nonzero().flatten().tolist() for row in close & (slots != 0).any(-1)]
            self._places[i] = {token: held for token, held in zip(free, places, strict=True) if held}
        return self._places[i]

    def _embedded(self, tokens: list[int]) -> torch.Tensor:
        return self._base.embeddings[tokens].detach().float().cpu()

    @cached_property
    def _pieces(self) -> list[str]:
        """The text of each token, with the space before it."""
        return self._base.prompts.vocabulary(len(self._base.embeddings))

    @cached_property
    def _kinds(self) -> list[Kind | None]:
        return [_kind(piece) for piece in self._pieces]

    @cached_property
    def _alike(self) -> dict[Kind | None, list[int]]:
        found: dict[Kind | None, list[int]] = {}
        for token, kind in enumerate(self._kinds):
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
