"""What the rules of a plan look at: how much an episode moves, and a signature that near copies of it share."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIGNATURE_BITS = 256


def motion(frames: UInt8[np.ndarray, "F H W 3"]) -> float:
    """Returns the mean absolute change of a pixel from frame to frame (grey levels of 255)."""
    grey = _grey(frames)
    return int(np.abs(np.diff(grey, axis=0)).sum()) / max(1, grey[1:].size)


def signature(frames: UInt8[np.ndarray, "F H W 3"]) -> int:
    """Returns SIGNATURE_BITS bits: perceptual hashes of the first, middle and last frame, and of where it moves.

    Without the last, all episodes of a camera that stands still would be copies of each other.
    """
    import imagehash  # pulls scipy, which --help shall not wait for

    change = np.abs(np.diff(_grey(frames), axis=0)).sum(axis=0)
    moving = (change * 255 // max(1, int(change.max()))).astype(np.uint8)
    pictures = [frames[0], frames[len(frames) // 2], frames[-1], moving]
    return int("".join(str(imagehash.phash(Image.fromarray(picture))) for picture in pictures), 16)


def _grey(frames: UInt8[np.ndarray, "F H W 3"]) -> np.ndarray:
    """Luma in whole numbers, so that sums are the same on every machine; int32 [F, H, W]."""
    return frames.astype(np.int32) @ np.array([299, 587, 114], dtype=np.int32) // 1000
