"""Which episodes a data set keeps, how they are split, and which tar each goes to: a pure function of their records.

In: every candidate in order of name and time. Out: the tars' contents, and each candidate that a rule dropped.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flamscale.data.episode import split_of
from flamscale.data.measure import SIGNATURE_BITS
from flamscale.data.shards import Sample, assign
from flamscale.errors import DataError

STATIC, DUPLICATE = "static", "duplicate"
RULES = (STATIC, DUPLICATE)
_POOLED_EPISODES = 10  # parts with fewer episodes are split together, not each for itself


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which candidates are dropped."""

    static_threshold: float
    """Episodes that change less from frame to frame are dropped (mean absolute grey levels); 0 keeps all."""
    duplicate_bits: int
    """Episodes whose signature differs in at most so many bits from a kept one's are dropped; -1 keeps all."""


@dataclass(frozen=True, kw_only=True)
class Candidate(Sample):
    """An episode that was encoded: a sample, where its tar blocks lie, and what the rules look at."""

    part: int
    """Number of the part it comes from."""
    piece: str
    """File in the work folder that holds its blocks."""
    offset: int
    """First byte of them."""
    fps: float
    """Frames a second."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    motion: float = 0.0
    """Mean absolute change from frame to frame (grey levels)."""
    signature: str = ""
    """As `measure.signature` makes it (hex)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes where."""

    tars: dict[str, list[Candidate]]
    """Contents by path, in the manifest's order."""
    dropped: dict[str, list[Candidate]]
    """By rule."""

    @property
    def kept(self) -> list[Candidate]:
        """All that is kept, tar by tar."""
        return [candidate for tar in self.tars.values() for candidate in tar]


def make_plan(candidates: Sequence[Candidate], rules: Rules | None, shard_bytes: int) -> Plan:
    """Plans a data set of tars closed at `shard_bytes`; no `rules` keep every candidate.

    Raises:
        DataError: no candidate is left, or they differ in frame size.
    """
    kept, dropped = list(candidates), {rule: list[Candidate]() for rule in RULES}
    if rules is not None:
        dropped[STATIC] = [item for item in kept if item.motion < rules.static_threshold]
        kept = [item for item in kept if item.motion >= rules.static_threshold]
        kept, dropped[DUPLICATE] = _without_duplicates(kept, rules.duplicate_bits)
    if not kept:
        reasons = ", ".join(f"{len(items)} {rule}" for rule, items in dropped.items())
        raise DataError(
            f"Not one episode is left of {len(candidates)} ({reasons}): give longer or livelier videos, shorter "
            f"--episode-frames, or a lower --static-threshold."
        )
    first = kept[0]
    for item in kept:
        if (item.height, item.width) != (first.height, first.width):
            raise DataError(
                f"Expected frames of {first.height}x{first.width} pixels as in sample {first.key}, got "
                f"{item.height}x{item.width} in sample {item.key}: a data set has one frame size."
            )
    return Plan(tars=assign(_with_splits(kept), shard_bytes), dropped=dropped)


def _with_splits(kept: Iterable[Candidate]) -> list[Candidate]:
    """Gives a split to all that have none: 80/10/10 in time order of each long part, the short ones taken together."""
    kept = list(kept)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(kept):
        if not item.split:
            groups[item.part].append(index)
    pool = [index for group in groups.values() if len(group) < _POOLED_EPISODES for index in group]
    for group in [pool, *(group for group in groups.values() if len(group) >= _POOLED_EPISODES)]:
        for position, index in enumerate(group):
            kept[index] = replace(kept[index], split=split_of(position, len(group)))
    return kept


def _without_duplicates(candidates: Sequence[Candidate], max_bits: int) -> tuple[list[Candidate], list[Candidate]]:
    """Returns the first of all that are alike, and the others.

    Signatures are cut into more than max_bits bands: two that differ in at most max_bits bits agree in one of them, so
    each is compared only with those that share a band.
    """
    if max_bits < 0:
        return list(candidates), []
    kept, dropped = [], []
    width = SIGNATURE_BITS // (max_bits + 1)
    known: dict[tuple[int, int], list[int]] = defaultdict(list)
    for item in candidates:
        bits = int(item.signature, 16)
        bands = [(band, bits >> band & ((1 << width) - 1)) for band in range(0, SIGNATURE_BITS, width)]
        if any((bits ^ other).bit_count() <= max_bits for band in bands for other in known[band]):
            dropped.append(item)
            continue
        kept.append(item)
        for band in bands:
            known[band].append(bits)
    return kept, dropped
