"""Positions of the endless order in; their clips out, and sound ones in place of those that are damaged."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flamscale.data.fetch import Contents
from flamscale.data.order import MixtureOrder
from flamscale.data.reader import ClipReader, Findings


@dataclass(frozen=True)
class PositionReader:
    """Reads the clips at positions of the endless order; for a damaged one, the next sound one in that order."""

    order: MixtureOrder
    reader: ClipReader
    _requested: dict[int, Contents] = field(default_factory=dict, init=False)  # by the first position

    def __call__(
        self, positions: Sequence[int], later: Sequence[int] = (), memory: memoryview | None = None
    ) -> tuple[np.ndarray, Findings]:
        """Returns the clips [B, T, ...] and what was met on the way; raises as `ClipReader.read`.

        Args:
            positions: of the endless order.
            later: positions that will be read after some others, and are asked of an object store now.
            memory: where video is decoded to, if given.
        """
        self.reader.want(self.order.shards_near(positions[0]))
        batch = self.reader.batch(len(positions), memory)
        requested = self._requested.pop(positions[0], None)
        if later and self.reader.in_store:
            if requested is None:  # these first
                requested = self._request(positions)
            self._requested[later[0]] = self._request(later)
        candidates = [self.order.candidates(position) for position in positions]
        clips, findings = self.reader.read(candidates, batch, requested)
        return np.stack(clips) if batch is None else batch, findings

    def _request(self, positions: Sequence[int]) -> Contents:
        return self.reader.request(next(self.order.candidates(position)) for position in positions)

    def close(self) -> None:
        """Forgets what was asked for, closes files and ends threads; reading again opens them anew."""
        self._requested.clear()
        self.reader.close()
