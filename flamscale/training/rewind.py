"""What to do about a loss that is not finite or jumps: losses in; the batches to leave out from then on, out.

Training goes back to the newest checkpoint, which was saved after its losses had been looked at, and on over the same
data without the batch of the first bad step and the one before it, whose update may have been the cause. A batch that
is left out is read and dropped, so that the others keep their places. The state lies in every checkpoint: a run that is
killed goes on as it would have.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from flamscale.config import StageConfig

_RECENT = 200  # losses a jump is measured against (count)
_FEWEST = 50  # of them, before anything counts as a jump (count)


class BatchFilter:
    """Which global batches a stage leaves out, and why the next would be.

    Args:
        config: `spike_factor`.

    Attributes:
        left_out: numbers of global batches, counted from the start of training.
        rewinds: how often training went back (count).
    """

    def __init__(self, config: StageConfig) -> None:
        self._spike_factor = config.spike_factor
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self.left_out: set[int] = set()
        self.rewinds = 0

    def batch_of(self, step: int) -> int:
        """Returns the number of the global batch that step `step`, counted from 0, trains on; -1 for none, at -1."""
        number = step
        for left_out in sorted(self.left_out):
            number += left_out <= number
        return number

    def first_bad(self, losses: Sequence[float], norms: Sequence[float]) -> tuple[int, str] | None:
        """Looks at successive steps, and takes note of their losses unless one is bad.

        Args:
            losses: loss of each step.
            norms: gradient norm of each step.

        Returns:
            Index of the first bad step and what is wrong with it, or None.
        """
        typical = statistics.median(self._recent) if len(self._recent) >= _FEWEST else math.inf
        for index, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                return index, f"loss {loss:.5g} with gradient norm {norm:.5g}"
            if self._spike_factor and loss > self._spike_factor * typical:
                return index, f"loss {loss:.5g}, {loss / typical:.3g} times the median of the last {len(self._recent)}"
        self._recent.extend(losses)
        return None

    def leave_out(self, bad_step: int, first_step: int) -> list[int]:
        """Leaves out the batch of a bad step and, from `first_step` on, the one before it; returns their numbers."""
        numbers = [self.batch_of(step) for step in (bad_step - 1, bad_step) if step >= first_step]
        self.left_out.update(numbers)
        self.rewinds += 1
        return numbers

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as JSON values."""
        return {"left_out": sorted(self.left_out), "rewinds": self.rewinds, "recent_losses": list(self._recent)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over a checkpoint's state; batches found bad since then stay left out."""
        self.left_out.update(state["left_out"])
        self.rewinds = max(self.rewinds, state["rewinds"])
        self._recent = deque(state["recent_losses"], maxlen=_RECENT)
