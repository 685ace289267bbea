"""The default router over many draws of the same questions: small domains, near ones, and strangers.

Of every domain five sixths of its known questions are drawn; one domain is cut short and one split in two by
2-means, so that two are neighbours. Figures are the mean over the draws and their worse ends.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score

from gag.project.domain import EncoderSpec
from gag.project.settings import GENERAL, RouterSettings
from gag.routing.bank import Bank
from gag.routing.building import FOLDS, Encoded, build_bank
from gag.routing.query_encoder import QueryEncoder
from gag.routing.router import Router

Split = dict[str, torch.Tensor]  # a domain's vectors [N, Dq]
SHARE = 5 / 6  # of the known questions in a draw
SMALL = 260  # questions of the domain that is cut short


class Given:
    """Stands for the encoder where vectors are given."""

    def __init__(self, width: int):
        self.spec = EncoderSpec("benchmark", "own", 256, width)

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Never called: the vectors are given."""
        raise NotImplementedError


def bank_of(vectors: torch.Tensor, encoder: QueryEncoder, settings: RouterSettings) -> Bank:
    """Make a bank that can be judged by all of its questions; a fold is a hash, as in a project."""
    hashes = [hashlib.sha256(row.numpy().tobytes()).digest() for row in vectors]
    folds = torch.tensor([int.from_bytes(digest[-8:]) % FOLDS for digest in hashes])
    return build_bank(Encoded([], vectors, folds), encoder.spec, settings)


def router_of(banks: dict[str, Bank], settings: RouterSettings) -> Router:
    """Make the router over banks of given vectors."""
    return Router(banks, Given(next(iter(banks.values())).encoder.width), settings)


@dataclass(frozen=True)
class Scene:
    """One draw: known and test questions, and which domains are near each other."""

    known: Split
    test: Split
    near: tuple[str, ...]


def scene(known: Split, test: Split, seed: int, cut: str, split: str, small: int = SMALL) -> Scene:
    """Draw a scene: `cut` has so few questions, `split` is two domains."""
    generator = torch.Generator().manual_seed(seed)
    drawn, asked = {}, dict(test)
    for name, vectors in known.items():
        order = torch.randperm(len(vectors), generator=generator)
        drawn[name] = vectors[order[: small if name == cut else int(SHARE * len(vectors))]]
    halves = KMeans(2, n_init=10, random_state=0).fit(known[split].numpy())
    for part in (drawn, asked):
        labels = torch.from_numpy(halves.predict(part[split].numpy()))
        whole = part.pop(split)
        part |= {f"{split}-{half}": whole[labels == half] for half in (0, 1)}
    return Scene(drawn, asked, (f"{split}-0", f"{split}-1"))


def measure(scene: Scene, settings: RouterSettings) -> dict[str, float]:
    """Take one draw's figures."""
    encoder = Given(next(iter(scene.test.values())).shape[1])
    banks = {name: bank_of(vectors, encoder, settings) for name, vectors in scene.known.items()}
    router = router_of(banks, settings)
    made = router.calibration
    if made is None:
        raise RuntimeError(router.state.warning)
    asked = torch.cat([scene.test[name] for name in router.names])
    truth = np.repeat(np.arange(len(router.names)), [len(scene.test[name]) for name in router.names])
    verdict = router.judge(asked)
    chosen, bare = verdict.chosen.numpy(), verdict.scores.argmax(1).numpy()
    reached = {
        name: float((chosen[truth == place] > 0).mean()) for place, name in enumerate(router.names) if place
    }
    figures = {
        "micro": float((chosen == truth).mean()),
        "rule_alone": float((bare == truth).mean()),
        "general_at_specialists": float((chosen[truth == 0] > 0).mean()),
        "least_coverage": min(reached.values()),
        **{f"margin_{name}": margin for name, margin in made.margins.items()},
        **{f"coverage_{name}": share for name, share in reached.items()},
    }
    figures["against_rule_alone"] = figures["micro"] - figures["rule_alone"]
    return figures | strangers(banks, scene, settings)


def strangers(banks: dict[str, Bank], scene: Scene, settings: RouterSettings) -> dict[str, float]:
    """Leave each specialist out and ask its questions: does the distance tell them from the others'?"""
    found = {}
    for name in banks.keys() - {GENERAL}:
        router = router_of({other: bank for other, bank in banks.items() if other != name}, settings)
        asked = [*(scene.test[other] for other in router.names), scene.test[name]]
        verdict = router.judge(torch.cat(asked))
        outside = np.arange(len(verdict.chosen)) >= sum(map(len, asked[:-1]))
        if verdict.distances is None:
            raise RuntimeError(router.state.warning)
        found[f"auroc_{name}"] = float(roc_auc_score(outside, verdict.distances.numpy()))
        found[f"to_general_{name}"] = float((verdict.chosen.numpy()[outside] == 0).mean())
    near = [found[f"auroc_{name}"] for name in scene.near]
    return found | {
        "auroc_near_neighbour": min(near),
        "auroc_strangers": min(v for k, v in found.items() if k[:5] == "auroc"),
    }


def worst(figures: Iterable[dict[str, float]], share: float, lower_is_better: set[str]) -> dict[str, float]:
    """Return the bad end of each figure over the draws: `share` of them are as bad or worse."""
    rows = list(figures)
    return {
        key: float(np.quantile([row[key] for row in rows], 1 - share if key in lower_is_better else share))
        for key in rows[0]
    }


LOWER = {"general_at_specialists"}
SIZES, FEWER = (30, 100, 300), 10  # of sub-sampled domains, and the draws of each


def over_draws(
    known: Split, test: Split, draws: int, settings: RouterSettings
) -> tuple[dict[str, float], dict[str, tuple[str, float]], list[str]]:
    """Measure many draws -> figures, their floors, and the lines of a table."""
    sizes = {name: len(vectors) for name, vectors in known.items() if name != GENERAL}
    cut, split = sorted(sizes)[0], sorted(sizes)[-1]
    rows = [measure(scene(known, test, seed, cut, split), settings) for seed in range(draws)]
    tenth, twentieth = worst(rows, 0.1, LOWER), worst(rows, 0.05, LOWER)
    lines = ["", f"{draws} draws; {cut} has {SMALL} questions, {split} is two domains"]
    lines.append(f"{'':<32}{'mean':>9}{'worst tenth':>13}{'worst twentieth':>17}")
    for key in rows[0]:
        mean = float(np.mean([row[key] for row in rows]))
        lines.append(f"{key:<32}{mean:>9.4f}{tenth[key]:>13.4f}{twentieth[key]:>17.4f}")
    figures = {f"draws_{key}": value for key, value in tenth.items()}
    figures |= {f"draws_{key}_p5": value for key, value in twentieth.items()}
    margins = {key: [row[key] for row in rows] for key in rows[0] if key.startswith("margin_")}
    ratios = {key: max(each) / max(1e-9, min(each)) for key, each in margins.items()}
    figures["draws_margin_ratio"] = max(ratios.values())
    said = ", ".join(f"{key[7:]} {ratio:.2f}" for key, ratio in ratios.items())
    lines.append(f"margins over the draws, largest over smallest: {said}")
    for size in SIZES:
        few = [
            measure(scene(known, test, seed, cut, split, size), settings) for seed in range(min(draws, FEWER))
        ]
        low = worst(few, 0.1, LOWER)
        figures |= {f"few_{size}_micro": low["micro"], f"few_{size}_coverage": low[f"coverage_{cut}"]}
        lines.append(
            f"{cut} with {size} questions, worst tenth: micro {low['micro']:.4f}, "
            f"reached {low[f'coverage_{cut}']:.4f}, least of all {low['least_coverage']:.4f}"
        )
    floors = {
        "draws_micro": (">=", 0.975),
        "draws_against_rule_alone": (">=", -0.012),
        "draws_least_coverage": (">=", 0.92),
        "draws_general_at_specialists": ("<=", 0.02),
        "draws_margin_ratio": ("<=", 2.0),
        "draws_auroc_near_neighbour": (">=", 0.88),
    }
    return figures, floors, lines
