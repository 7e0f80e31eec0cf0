"""Pictures with their times in; frames at a steady rate out, each marked where a new scene starts with it.

One picture at a time: nothing here holds more than a few.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_LONGEST_GAP_S = 1.0  # a longer hole between two pictures, or four ticks, is a cut
_TIE_S = 0.001  # time stamps may be rounded to milliseconds: between two pictures as near, the earlier is taken


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a video, converted only if it is wanted."""

    time_s: float
    """When it is shown (seconds)."""
    load: Callable[[], Image.Image]
    """Returns its pixels."""


def resample(pictures: Iterator[Picture], fps: float) -> Iterator[tuple[Picture, bool]]:
    """Yields for each tick of a clock the picture nearest in time, and whether the clock was set anew before it.

    The clock starts with the first picture, and again after a hole in time or a jump back.
    """
    previous: Picture | None = None
    start_s, tick, fresh = 0.0, 0, True
    longest_gap_s = max(_LONGEST_GAP_S, 4 / fps)
    for picture in pictures:
        if previous is not None and picture.time_s == previous.time_s:
            continue
        restarts = previous is None or not 0 < picture.time_s - previous.time_s <= longest_gap_s
        if previous is not None:
            until_s = previous.time_s + 0.5 / fps if restarts else (previous.time_s + picture.time_s) / 2 + _TIE_S
            while start_s + tick / fps < until_s:
                yield previous, fresh
                tick, fresh = tick + 1, False
        if restarts:
            start_s, tick, fresh = picture.time_s, 0, True
        previous = picture
    while previous is not None and start_s + tick / fps < previous.time_s + 0.5 / fps:
        yield previous, fresh
        tick, fresh = tick + 1, False


def mark_scenes(
    frames: Iterator[tuple[UInt8[np.ndarray, "H W 3"], bool]], threshold: float
) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], bool]]:
    """Passes frames on, marked where a new scene starts: where they were marked, and at cuts.

    A cut is where the picture changes `threshold` times as much as in the two frames before and after (and by 15 levels
    of hue, saturation and brightness), so fast motion is none; in the first and last two frames none is found.

    Args:
        frames: RGB frames, and whether a scene starts with each for another reason.
        threshold: 0 finds no cuts.
    """
    if not threshold:
        yield from frames
        return
    from scenedetect import AdaptiveDetector, FrameTimecode  # pulls OpenCV, which --help shall not wait for

    waiting: deque[tuple[np.ndarray, bool]] = deque()
    detector = None
    for number, (frame, fresh) in enumerate(frames):
        if fresh or detector is None:
            yield from waiting
            waiting.clear()
            detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1)
        waiting.append((frame, fresh))
        cuts = detector.process_frame(FrameTimecode(number, 1.0), np.ascontiguousarray(frame[..., ::-1]))
        if cuts:  # always of the frame that is event_buffer_length frames back
            waiting[0] = (waiting[0][0], True)
        if len(waiting) > detector.event_buffer_length:
            yield waiting.popleft()
    yield from waiting
