"""A residual index of token states for late interaction: 2 bits a number, as in ColBERTv2.

Each token is kept as its nearest centre and, of what is left of every number, one of four values: a byte for
four numbers, beside two bytes for the centre. Few passages are compared whole; of many, the tokens at a
question's nearest centres vote for those that are. The libraries of this kind need older versions of torch.

Source: Santhanam et al., ColBERTv2 (arXiv 2112.01488); candidates as in XTR (arXiv 2304.01982).
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

CANDIDATES = 512  # passages that are compared whole
PROBED = 32  # nearest centres of a question's token
BLOCK = 256  # passages encoded, or compared, together
LEARNED_FROM = 32  # tokens of the sample for each centre
MOST_CENTRES = 2**16  # what two bytes can name
SEED = 7  # of the sample and of its centres

Encode = Callable[[list[str]], list[torch.Tensor]]  # texts -> of each the unit states [T, D]


class TokenIndex:
    """The token states of passages, compressed, and the search over them.

    Args:
        texts: the passages.
        encode: what turns texts into unit states of their tokens, [T, D] each; called for a block at a time,
            once for every passage, so that never all of the states are there.
    """

    def __init__(self, texts: Sequence[str], encode: Encode):
        order = random.Random(SEED).sample(range(len(texts)), len(texts))  # the first are the sample
        blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
        sample, ahead = [encode([texts[i] for i in blocks[0]])], 1
        tokens = max(1.0, sum(map(len, sample[0])) / len(blocks[0]))  # of a passage, about
        wanted = LEARNED_FROM * _number_of_centres(tokens * len(texts)) / tokens  # passages
        while ahead < len(blocks) and ahead * BLOCK < wanted:
            sample.append(encode([texts[i] for i in blocks[ahead]]))
            ahead += 1
        self._learn(torch.cat([states for block in sample for states in block]), tokens * len(texts))
        rows = [self._compressed(states) for block in sample for states in block]
        for block in blocks[ahead:]:
            rows += map(self._compressed, encode([texts[i] for i in block]))
        rows = [rows[i] for i in np.argsort(order)]
        self._starts = np.cumsum([0, *(len(codes) for codes, _ in rows)])  # of each passage, [N + 1]
        self._codes = np.concatenate([codes for codes, _ in rows])  # [all tokens], 2 bytes
        self._left = np.concatenate([left for _, left in rows])  # [all tokens, D / 4], a byte for 4 numbers
        self._find_by_centre()

    @property
    def bytes(self) -> int:
        """What the index takes, in memory or on disk."""
        kept = self._starts, self._codes, self._left, self._at_centre, self._centre_starts
        return sum(array.nbytes for array in kept) + self._centres.nbytes

    def search(self, question: torch.Tensor, count: int) -> list[int]:
        """Find the passages of the best MaxSim, in which each of a question's tokens takes its best match.

        Args:
            question: unit states of its tokens, [Q, D].
            count: how many passages.

        Returns:
            the passages' numbers, best first.
        """
        passages = np.arange(len(self._starts) - 1)
        if len(passages) > max(CANDIDATES, count):
            passages = self._candidates(question, max(CANDIDATES, count))
        scores = [
            self._maxsim(question, passages[start : start + BLOCK])
            for start in range(0, len(passages), BLOCK)
        ]
        best = torch.cat(scores).argsort(descending=True, stable=True)[:count]
        return passages[best.numpy()].tolist()

    def _learn(self, states: torch.Tensor, tokens: float) -> None:
        """Learn centres and the four values from a sample [T, D] of so many tokens."""
        number = min(_number_of_centres(tokens), len(states))
        means = MiniBatchKMeans(
            number, init="random", n_init="auto", max_iter=10, batch_size=8 * number, random_state=SEED
        ).fit(states.numpy())
        self._centres = torch.from_numpy(means.cluster_centers_).float()  # [K, D]
        left = (states - self._centres[self._nearest(states)]).flatten()
        left = left[:: max(1, len(left) // 2**20)]
        self._cuts = torch.quantile(left, torch.tensor([0.25, 0.5, 0.75]))
        values = torch.quantile(left, torch.tensor([0.125, 0.375, 0.625, 0.875]))
        byte = torch.arange(256)[:, None] >> torch.tensor([0, 2, 4, 6]) & 3  # [256, 4]
        self._values = values[byte]  # [256, 4]: the four numbers of a byte

    def _nearest(self, states: torch.Tensor) -> torch.Tensor:
        half = self._centres.square().sum(1) / 2
        parts = [(part @ self._centres.T - half).argmax(1) for part in states.split(4096)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    def _compressed(self, states: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        codes = self._nearest(states)
        left = torch.bucketize(states - self._centres[codes], self._cuts).to(torch.uint8)
        left = torch.nn.functional.pad(left, (0, -left.shape[1] % 4)).unflatten(1, (-1, 4))  # [T, D / 4, 4]
        packed = (left << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)).sum(2, dtype=torch.uint8)
        return codes.numpy().astype(np.uint16), packed.numpy()

    def _find_by_centre(self) -> None:
        """Note which passages have tokens at each centre."""
        passages = np.repeat(np.arange(len(self._starts) - 1, dtype=np.int32), np.diff(self._starts))
        order = np.argsort(self._codes, kind="stable")
        self._at_centre = passages[order]  # [all tokens]
        counts = np.bincount(self._codes, minlength=len(self._centres))
        self._centre_starts = np.concatenate([[0], np.cumsum(counts)])

    def _candidates(self, question: torch.Tensor, most: int) -> np.ndarray:
        """Take the passages whose tokens lie at the nearest centres, by the centres' scores alone."""
        found = (question @ self._centres.T).topk(min(PROBED, len(self._centres)), dim=1)  # [Q, PROBED]
        total = np.zeros(len(self._starts) - 1, dtype=np.float32)
        for scores, centres in zip(found.values.numpy(), found.indices.numpy(), strict=True):
            best = np.full(len(total), scores[-1])  # no better than the farthest of them
            for score, centre in zip(scores[::-1], centres[::-1], strict=True):
                best[self._at_centre[self._centre_starts[centre] : self._centre_starts[centre + 1]]] = score
            total += best
        return np.sort(np.argpartition(-total, most)[:most])

    def _maxsim(self, question: torch.Tensor, passages: np.ndarray) -> torch.Tensor:
        spans = [slice(self._starts[i], self._starts[i + 1]) for i in passages]
        codes = np.concatenate([self._codes[span] for span in spans]).astype(np.int64)
        left = np.concatenate([self._left[span] for span in spans]).astype(np.int64)
        width = self._centres.shape[1]
        states = self._centres[codes] + self._values[left].flatten(1)[:, :width]  # [tokens, D]
        cosines = torch.nn.functional.normalize(states, dim=1) @ question.T  # [tokens, Q]
        sizes = torch.tensor([span.stop - span.start for span in spans])
        return torch.segment_reduce(cosines, "max", lengths=sizes, axis=0).sum(1)  # [passages]


def _number_of_centres(tokens: float) -> int:
    """A power of two near four times the root of the tokens."""
    return min(MOST_CENTRES, 2 ** int(np.log2(max(1.0, 4 * tokens**0.5))))
