"""What is wrong with the domains' questions, as far as the router can see it: strays, twins, wrong priors."""

import math
from collections.abc import Sequence

import torch

from gag.routing.temperatures import recall

SURE = math.log(5)  # log odds for another domain; a tenth of strays makes all odds ten to one, no more
STRAY_SHARE, STRAYS = 0.03, 3  # of a domain's questions, and so many at least: what is said
MIXED_SHARE = 0.2  # of a domain's questions go to one other domain: the two cannot be told apart
PRIORS_COST = 0.05  # of mean recall


def strays(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Say which questions look like another domain's, scores [C, N] by rules that saw none of them -> [C]."""
    return scores.amax(1) - scores.gather(1, truth[:, None])[:, 0] > SURE


def doubts(names: Sequence[str], scores: torch.Tensor, gains: torch.Tensor, truth: torch.Tensor) -> list[str]:
    """Say what is wrong with questions and priors.

    Args:
        names: the domains.
        scores: of their questions, by rules that have not seen them [C, N].
        gains: what the priors add [N].
        truth: places of the questions' domains [C].
    """
    count = len(names)
    sizes = torch.bincount(truth, minlength=count)
    best = scores.argmax(1)
    stray = strays(scores, truth)
    said = [
        f"{name} has too few questions to be judged"
        for name, size in zip(names, sizes, strict=True)
        if not size
    ]
    for place in torch.unique(truth[stray]).tolist():
        found = torch.bincount(best[stray & (truth == place)], minlength=count)
        if (total := int(found.sum())) >= max(STRAYS, STRAY_SHARE * int(sizes[place])):
            whose = ", ".join(
                f"{names[i]} {int(found[i])}" for i in found.argsort(descending=True)[:3].tolist() if found[i]
            )
            said.append(
                f"{total} of the {int(sizes[place])} questions of {names[place]} that were judged look like "
                f"other domains' ({whose}); `gag router show --strays` names them"
            )
    wrong = best != truth
    pairs = truth[wrong] * count + best[wrong]
    for pair, number in zip(*torch.unique(pairs, return_counts=True), strict=True):
        place, other = divmod(int(pair), count)
        if int(number) >= max(STRAYS, MIXED_SHARE * int(sizes[place])):
            said.append(
                f"{int(number)} of the {int(sizes[place])} questions of {names[place]} that were judged go "
                f"to {names[other]}: the two can hardly be told apart; do they hold the same questions?"
            )
    before, after = recall(scores, truth), recall(scores + gains, truth)
    if before - after > PRIORS_COST:
        said.append(
            f"router.priors contradict the questions: with them {after:.1%} are routed right, without "
            f"{before:.1%}"
        )
    return said
