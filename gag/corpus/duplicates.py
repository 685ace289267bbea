"""Find texts that say the same: equal ones, and those whose runs of five words are mostly shared.

MinHash finds the pairs that may be (Broder 1997), and their sets of words decide.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

from datasketch import MinHash, MinHashLSH

ALIKE = 0.8  # of all runs of words that two texts have, both have
RUN = 5  # words


def shingles(text: str) -> frozenset[bytes]:
    """Return a text's runs of five words; of a shorter one, all of its words as one."""
    words = re.findall(r"\w+", text.lower())
    runs = (words[i : i + RUN] for i in range(max(1, len(words) - RUN + 1)))
    return frozenset(" ".join(run).encode() for run in runs)


def jaccard(one: frozenset[bytes], other: frozenset[bytes]) -> float:
    """Return what two sets share, of what they have together."""
    return len(one & other) / max(1, len(one | other))


def near_duplicates(texts: Sequence[str], alike: float = ALIKE) -> dict[int, int]:
    """Find texts that an earlier one says as well -> the place of each such text, and of that earlier one.

    Args:
        texts: in the order of which the first is kept.
        alike: the Jaccard similarity of their runs of words from which they are the same.
    """
    found: dict[int, int] = {}
    equal: dict[bytes, int] = {}  # by what says all of a text's words
    index: MinHashLSH = MinHashLSH(threshold=alike - 0.1, num_perm=128)  # lower: it only finds candidates
    for place, (runs, sketch) in enumerate(_sketched(texts)):
        words = hashlib.sha256(b"\n".join(sorted(runs))).digest()
        if equal.setdefault(words, place) != place:
            found[place] = equal[words]
            continue
        near = {int(str(key)): 0.0 for key in index.query(sketch)}
        near = {
            key: jaccard(shingles(texts[key]), runs) for key in near
        }  # made again: all would fill the memory
        best = max(near, key=near.__getitem__, default=-1)
        if best >= 0 and near[best] >= alike:
            found[place] = best
        else:
            index.insert(str(place), sketch, check_duplication=False)
    return found


def _sketched(texts: Sequence[str]) -> Iterator[tuple[frozenset[bytes], MinHash]]:
    for start in range(0, len(texts), 512):
        sets = [shingles(text) for text in texts[start : start + 512]]
        yield from zip(sets, MinHash.generator([sorted(one) for one in sets], num_perm=128), strict=True)
