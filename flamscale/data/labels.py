"""True actions and positions of evaluation clips: a split in; its clips and what the simulator knew of them out.

They lie beside each video as key.npz, and serve evaluation, and the one baseline that takes true actions.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, Int64, UInt8
from torch import Tensor

from flamscale.data import npy, storage
from flamscale.data.clips import Clip, ClipSpace
from flamscale.data.manifest import Samples, Shard
from flamscale.data.mixture import Mixture
from flamscale.data.sampling import eval_space, read_spread
from flamscale.data.sources.multigrid import ROOM_TILES
from flamscale.errors import DataError

LABELS = "npz"
"""Ending of a sample's file of labels."""
_GRID = ROOM_TILES  # cells along each side of a frame, in other games too


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledClips:
    """n clips of T frames, and what is known of E entities, the same ones in the same order in all clips.

    MultiGrid's entities are its agents. Of a Procgen game's it is the player alone, since the others come and go.
    """

    frames: UInt8[Tensor, "n T H W 3"]
    """The clips."""
    actions: Int64[np.ndarray, "n L E"] | None
    """True actions, actions[:, t] leading from frame t to t + 1; None where frames lie more than one action apart."""
    positions: Float32[np.ndarray, "n T E 2"]
    """Centre of each entity as x, y (pixels, from the upper left corner)."""
    cells: Int64[np.ndarray, "n T E"]
    """Cell of the 8 x 8 that cover a frame in which that centre lies, row by row."""
    entity_map: Int8[np.ndarray, "n T H W"] | None
    """Entity of every pixel, -1 for none; None where the simulator gives no shapes."""


def labelled_clips(
    data: Mixture,
    split: str,
    *,
    clip_frames: int,
    frame_stride: int,
    num_clips: int,
    remedy: str = "leave out --factors",
) -> LabelledClips:
    """Returns the clips that `eval_clips` returns for the same arguments, and their labels.

    `remedy` is what a user can do who has none.

    Raises:
        DataError: as `eval_clips`, or a sample has no labels, or damaged ones.
    """
    space = eval_space(data, split, clip_frames=clip_frames, frame_stride=frame_stride)
    frames, clips = read_spread(data, space, num_clips)
    labels = [_read(space, clip, data.height, remedy) for clip in clips]
    tiles = [of.tiles for of in labels if of.tiles is not None]
    return LabelledClips(
        frames=frames,
        actions=None if frame_stride > 1 else np.stack([of.actions for of in labels]),
        positions=np.stack([of.positions for of in labels]),
        cells=np.stack([_cells(of.positions, data.height) for of in labels]),
        entity_map=np.stack([_draw(of, data.height) for of in tiles]) if len(tiles) == len(labels) else None,
    )


def read_labels(shard: Shard, samples: Samples, sample: int, remedy: str) -> dict[str, np.ndarray]:
    """Reads all labels of a sample; `remedy` is what a user can do who has none.

    Raises:
        DataError: it has none, or damaged ones, or its shard cannot be read.
    """
    where, member = place_of(shard, samples, sample), samples.members.get(LABELS)
    if member is None or not member.sizes[sample]:
        raise DataError(
            f"Expected true actions and positions ({LABELS}) beside the video of {where}, found none: use a "
            f"simulator's data (recipes/make_shards.py --source multigrid or procgen), or {remedy}."
        )
    try:
        content = storage.read_range(shard.url, int(member.offsets[sample]), int(member.sizes[sample]))
        with npy.HEADERS, np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError as error:
        raise DataError(f"The shard {shard.url} is missing: copy it there, or make the data set anew.") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"The labels of {where} are damaged ({error}): make or copy this shard anew, or {remedy}."
        ) from error


def place_of(shard: Shard, samples: Samples, sample: int) -> str:
    """Returns a sample's name in messages."""
    return f"sample {samples.key(sample)} of {shard.url}"


def _read(space: ClipSpace, clip: Clip, size: int, remedy: str) -> "_ClipLabels":
    """Reads the labels of one clip, of frames `size` pixels wide."""
    shard, samples = space.shards[clip.shard], space.samples(clip.shard)
    found = read_labels(shard, samples, clip.sample, remedy)
    frames = slice(clip.first, clip.first + space.span, space.frame_stride)
    steps = slice(clip.first, clip.first + space.span - 1)
    if {"actions", "positions"} <= found.keys():
        tiles = found["positions"][frames, :, :2]
        return _ClipLabels(found["actions"][steps], ((tiles + 0.5) * (size / _GRID)).astype(np.float32), tiles)
    if {"actions", "entity_positions"} <= found.keys():
        return _ClipLabels(found["actions"][steps, None], found["entity_positions"][frames, :1], None)
    raise DataError(
        f"Expected actions and positions in the labels of {place_of(shard, samples, clip.sample)}, found only "
        f"{', '.join(found) or 'an empty file'}: make the shards anew with recipes/make_shards.py, or {remedy}."
    )


@dataclass(frozen=True)
class _ClipLabels:
    """Labels of one clip; `tiles` are x, y in the room of a grid world."""

    actions: Int64[np.ndarray, "steps E"]
    positions: Float32[np.ndarray, "T E 2"]
    tiles: Int64[np.ndarray, "T E 2"] | None


def _cells(positions: Float32[np.ndarray, "T E 2"], size: int) -> Int64[np.ndarray, "T E"]:
    """Cell in which each position lies; one beyond the frame's edge counts to the nearest."""
    column, row = np.moveaxis((positions * (_GRID / size)).astype(np.int64).clip(0, _GRID - 1), -1, 0)
    return row * _GRID + column


def _draw(tiles: Int64[np.ndarray, "T E 2"], size: int) -> Int8[np.ndarray, "T H W"]:
    """Entity of every pixel, where each entity fills its tile."""
    owner = np.full((len(tiles), _GRID, _GRID), -1, dtype=np.int8)
    frame = np.arange(len(tiles))
    for entity in range(tiles.shape[1]):
        x, y = tiles[:, entity].T
        owner[frame, y, x] = entity
    return owner.repeat(size // _GRID, axis=1).repeat(size // _GRID, axis=2)
