"""Procgen's serialised game state in; its entities out: what the simulator knows and a frame only shows.

The engine writes little-endian 4-byte fields and strings, without names (`serialize` in its C++ sources).
World coordinates: x to the right, y upwards, in tiles; the frame shows the whole square world.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from flamscale.errors import DataError

PLAYER = 0
"""Type of the player's entity, in every game."""
ENTITY = np.dtype(
    [(name, "<f4") for name in ("x", "y", "vx", "vy", "rx", "ry")]
    + [(name, "<i4") for name in ("type", "image_type", "image_theme", "render_z", "will_erase", "collides")]
    + [(name, "<f4") for name in ("collision_margin", "rotation", "vrot")]
    + [(name, "<i4") for name in ("is_reflected", "fire_time", "spawn_time", "life_time", "expire_time", "use_abs")]
    + [("friction", "<f4"), ("smart_step", "<i4"), ("avoids_collisions", "<i4"), ("auto_erase", "<i4")]
    + [(name, "<f4") for name in ("alpha", "health", "theta", "grow_rate", "alpha_decay", "climber_spawn_x")]
)
"""One entity: centre (tiles), velocity (tiles a step), half width and height (tiles), and the engine's other fields."""

_OPTIONS, _HEADER_AFTER_REWARD, _GAME_AFTER_ENTITIES, _GAME_BEFORE_GRID = (
    17,
    14,
    19,
    9,
)  # 4-byte fields without use here
_EPISODE_DONE = 7  # place among the fields after the reward
_POSITION_TOLERANCE = 1e-3  # tiles


@dataclass(frozen=True, eq=False)
class State:
    """One moment of a game."""

    reward: float
    """What the step that led here earned."""
    level_start: bool
    """Whether that step ended a level, so that this is the next level's first moment."""
    world_tiles: int
    """Width and height of the world (tiles)."""
    entities: np.ndarray
    """Array of ENTITY, in the engine's order; an entity keeps its place among those that stay."""
    grid: Int64[np.ndarray, "rows columns"]
    """Type of every fixed tile, bottom row first."""

    @property
    def player(self) -> np.void:
        """The player's entity."""
        return self.entities[self.entities["type"] == PLAYER][0]


def parse_state(content: bytes) -> State:
    """Reads one element of the environment's `get_state`.

    Raises:
        DataError: the fields do not add up, so this is another version of Procgen.
    """
    try:
        return _parse(content)
    except (struct.error, ValueError) as error:
        raise DataError(
            f"The state of the game should be laid out as in procgen-mirror 0.10.7 and is not ({error}): install that "
            f"version (pip install --no-deps procgen-mirror==0.10.7)."
        ) from error


def _parse(content: bytes) -> State:
    reader = _Reader(content)
    if version := reader.integer():
        raise ValueError(f"format {version}, expected 0")
    reader.skip_string()  # name of the game
    reader.skip(_OPTIONS)
    for _ in range(2):  # the random generators of levels and of the game
        reader.skip_random_generator()
    reward = reader.real()
    header = [reader.integer() for _ in range(_HEADER_AFTER_REWARD)]
    grid_size = reader.integer()
    entities = reader.array(ENTITY)
    reader.skip(_GAME_AFTER_ENTITIES)
    reader.skip_random_generator()
    reader.skip(_GAME_BEFORE_GRID)
    columns, rows = reader.integer(), reader.integer()
    tiles = reader.array(np.dtype("<i4"))
    if columns != rows or columns * rows != grid_size:
        raise ValueError(f"a world of {columns}x{rows} tiles, expected a square of {grid_size}")
    grid = tiles.reshape(rows, columns).astype(np.int64)
    return State(reward, bool(header[_EPISODE_DONE]), columns, entities, grid)


class _Reader:
    """Reads fields one after another."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._offset = 0

    def integer(self) -> int:
        self._offset += 4
        return struct.unpack_from("<i", self._content, self._offset - 4)[0]

    def real(self) -> float:
        self._offset += 4
        return struct.unpack_from("<f", self._content, self._offset - 4)[0]

    def array(self, dtype: np.dtype) -> np.ndarray:
        """Returns what a count announces."""
        count = self.integer()
        found = np.frombuffer(self._content, dtype, count, self._offset)
        self._offset += found.nbytes
        return found

    def skip(self, num_fields: int) -> None:
        self._offset += 4 * num_fields

    def skip_string(self) -> None:
        length = self.integer()
        self._offset += length

    def skip_random_generator(self) -> None:
        self.skip(1)  # whether it is seeded
        self.skip_string()


@dataclass(frozen=True, eq=False)
class Tracks:
    """The entities of a run of frames, one column an entity, the player first; N entities in all."""

    types: Int64[np.ndarray, "N"]
    """Type of each entity."""
    present: Bool[np.ndarray, "F N"]
    """Whether the entity exists in the frame."""
    positions: Float32[np.ndarray, "F N 2"]
    """Centre as x, y (pixels, from the frame's upper left corner); 0 where it does not exist."""
    velocities: Float32[np.ndarray, "F N 2"]
    """What the engine adds to the position in a step, as x, y (pixels a frame); 0 where it does not exist."""


def track(states: Sequence[State], size: int) -> Tracks:
    """Follows every entity through successive states of one level.

    An entity of the next state is one of this state where type and order agree, its age is one step higher and, but
    for the player, its place is where its velocity leads. All others are new.

    Args:
        states: successive states.
        size: height and width of the frames that positions refer to (pixels).
    """
    types: list[int] = []
    columns: list[list[int]] = []  # for each state, the column of each of its entities
    for number, state in enumerate(states):
        earlier = _match(states[number - 1].entities, state.entities) if number else [None] * len(state.entities)
        columns.append([])
        for place, entity_type in zip(earlier, state.entities["type"].tolist(), strict=True):
            if place is None:
                types.append(entity_type)
            columns[-1].append(len(types) - 1 if place is None else columns[-2][place])
    present = np.zeros((len(states), len(types)), dtype=bool)
    positions = np.zeros((len(states), len(types), 2), dtype=np.float32)
    velocities = np.zeros_like(positions)
    for frame, (state, column) in enumerate(zip(states, columns, strict=True)):
        scale, entities = size / state.world_tiles, state.entities
        present[frame, column] = True
        positions[frame, column] = np.stack([entities["x"], state.world_tiles - entities["y"]], axis=1) * scale
        velocities[frame, column] = np.stack([entities["vx"], -entities["vy"]], axis=1) * scale
    player_first = np.argsort(np.asarray(types) != PLAYER, kind="stable")
    return Tracks(
        np.asarray(types, dtype=np.int64)[player_first],
        present[:, player_first],
        positions[:, player_first],
        velocities[:, player_first],
    )


def _match(before: np.ndarray, after: np.ndarray) -> list[int | None]:
    """Returns, for each entity after a step, its place before the step, or None for a new one."""
    found: list[int | None] = []
    place = 0  # the engine removes and appends entities but never reorders them
    for entity in after:
        kept = (before["type"] == entity["type"]) & (before["life_time"] + 1 == entity["life_time"])
        if entity["type"] != PLAYER:
            kept &= np.abs(before["x"] + before["vx"] - entity["x"]) < _POSITION_TOLERANCE
            kept &= np.abs(before["y"] + before["vy"] - entity["y"]) < _POSITION_TOLERANCE
        candidates = np.flatnonzero(kept[place:])
        if len(candidates):
            place += int(candidates[0]) + 1
            found.append(place - 1)
        else:
            found.append(None)
    return found
