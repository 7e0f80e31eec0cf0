"""Memory that decoders have freed, given back to the system.

FFmpeg asks for aligned memory, of which glibc before 2.38 often uses none again (its bug 14581): depending on where a
process happens to lie in memory, it may grow with every clip that it decodes.
"""

import ctypes
import itertools
from collections.abc import Callable

TRIM_EVERY = 256
"""Clips decoded from one time to the next (count): enough that it takes no time to speak of."""

_trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
_decoded = itertools.count(1)


def note_decoded_clip() -> None:
    """Counts a clip; gives back what has been freed, each time so many are full."""
    if next(_decoded) % TRIM_EVERY == 0 and _trim is not None:
        _trim(0)
