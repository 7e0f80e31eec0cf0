"""Episodes of the paper's three Procgen games: frames, the player's actions, and where everything is.

The engine is the original one (package procgen-mirror), on its easy levels, with restricted themes and no backgrounds.
The paper recorded trained PPG experts; here scripted players play (`procgen_policy`), with a share of random actions.
Levels are first played without drawing; only the frames that are kept are then drawn from the engine's saved states.
"""

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flamscale.data.episode import Episode, Part, episodes_of, simulated_parts, split_of
from flamscale.data.sources.procgen_policy import FIRE, NUM_MOVES, POLICIES
from flamscale.data.sources.procgen_state import State, parse_state, track
from flamscale.errors import ConfigError, DataError

FPS = 15.0
NATIVE_PIXELS = 512
ENTITY_TYPES = {
    "bigfish": {0: "player", 2: "fish"},
    "leaper": {0: "player", 1: "log", 4: "car", 5: "finish line"},
    "starpilot": {0: "player", 1: "player's bullet", 2: "bullet", 4: "flyer", 9: "finish line", 54: "explosion"},
}
"""What the entity types of each game's easy levels stand for."""
_RESET = -1  # the action that ends a level
_LATEST_START = 256  # an episode begins at most so many steps into its level
_MAX_DROPPED = 200  # levels in a row that may turn out too short


@dataclass(frozen=True, kw_only=True)
class ProcgenSource:
    """Episodes of one Procgen game (arXiv 2602.16229 uses Bigfish, Leaper and Starpilot)."""

    game: Literal["bigfish", "leaper", "starpilot"] = "bigfish"
    """Which game."""
    size: int = 224
    """Height and width of a frame (pixels), even; the engine's 512 are averaged over areas."""
    episodes: int = 640
    """Episodes to make (count)."""
    episode_frames: int = 32
    """Frames of one episode, all of one level (count)."""
    random_action_share: float = 0.1
    """Share of the player's actions that are drawn at random (0 to 1)."""
    seed: int = 0
    """Seed of levels and actions; the same seed makes the same bytes."""

    def __post_init__(self) -> None:
        if self.game not in POLICIES:
            raise ConfigError(f"game must be one of {', '.join(POLICIES)}, got {self.game!r}.")
        if not 16 <= self.size <= NATIVE_PIXELS or self.size % 2:
            raise ConfigError(f"size must be an even number of pixels, 16 to {NATIVE_PIXELS}, got {self.size}.")
        for name, least in (("episodes", 1), ("episode_frames", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.random_action_share <= 1:
            raise ConfigError(f"random-action-share must lie between 0 and 1, got {self.random_action_share}.")

    def __len__(self) -> int:
        return self.episodes

    def __iter__(self) -> Iterator[Episode]:
        """Yields all episodes."""
        for part in self.parts():
            yield from self.read(part)

    def parts(self) -> Sequence[Part]:
        """Returns ranges of episodes."""
        return simulated_parts(self.episodes)

    def read(self, part: Part) -> Iterator[Episode]:
        """Yields the episodes of a range, split 80/10/10 in order; episode e depends on (seed, e) alone.

        Labels: the player's `actions` [F-1] (the engine's 15 numbers) and `rewards` [F-1]; of N entities, the player
        first, `entity_types` [N], `entity_present` [F, N], `entity_positions` and `entity_velocities` [F, N, 2] as
        x, y in pixels and pixels a frame. info: `entity_names` says what the types stand for, `dropped_levels` counts
        the levels before this one that ended too soon.
        """
        make_game = _import_engine()
        for index in episodes_of(part, self.episodes):
            yield self._record(index, make_game)

    def _record(self, index: int, make_game: Any) -> Episode:
        engine_seed, action_seed = np.random.SeedSequence([self.seed, index]).generate_state(2, dtype=np.uint32)
        game = _Game(make_game, self.game, int(engine_seed) // 2)
        try:
            run, dropped = self._find_run(game, np.random.default_rng(action_seed))
            frames = game.draw(run, self.size)
        finally:
            game.close()
        states = [moment.state for moment in run]
        tracks = track(states, self.size)
        return Episode(
            key=f"{self.game}-{index:07d}",
            split=split_of(index, self.episodes),
            frames=frames,
            fps=FPS,
            labels={
                "actions": np.asarray([moment.action for moment in run[:-1]], dtype=np.int64),
                "rewards": np.asarray([state.reward for state in states[1:]], dtype=np.float32),
                "entity_types": tracks.types,
                "entity_present": tracks.present,
                "entity_positions": tracks.positions,
                "entity_velocities": tracks.velocities,
            },
            info={
                "source": "procgen",
                "game": self.game,
                "entity_names": {str(number): name for number, name in ENTITY_TYPES[self.game].items()},
                "dropped_levels": dropped,
            },
        )

    def _find_run(self, game: "_Game", rng: np.random.Generator) -> "tuple[list[_Moment], int]":
        """Returns successive moments of the first level that lasts long enough, and how many before it did not.

        They begin at a random step of the level, or are its last ones where it ends before.
        """
        for dropped in range(_MAX_DROPPED):
            num_moments = int(rng.integers(_LATEST_START + 1)) + self.episode_frames
            level = list(itertools.islice(self._play_level(game, rng), num_moments))
            if len(level) >= self.episode_frames:
                return level[-self.episode_frames :], dropped
        raise DataError(
            f"Not one of {_MAX_DROPPED} levels of {self.game} lasted {self.episode_frames} frames: choose a smaller "
            f"--episode-frames."
        )

    def _play_level(self, game: "_Game", rng: np.random.Generator) -> "Iterator[_Moment]":
        """Plays the present level, moment by moment, until it ends or the player leaves the frame."""
        num_actions = FIRE + 1 if self.game == "starpilot" else NUM_MOVES  # the others do nothing or the same
        for step in itertools.count():
            content = game.save()
            state = parse_state(content)
            if step and state.level_start:
                return
            if not (0 <= state.player["x"] <= state.world_tiles):  # a frog that leaps off the side sticks there
                game.act(_RESET)
                return
            action = POLICIES[self.game](state)
            if rng.random() < self.random_action_share:
                action = int(rng.integers(num_actions))
            yield _Moment(content, state, action)
            game.act(action)


@dataclass(frozen=True, eq=False)
class _Moment:
    """What there is before a step, and the action taken in it."""

    content: bytes
    state: State
    action: int


class _Game:
    """One running game of the engine."""

    def __init__(self, make_game: Any, name: str, seed: int) -> None:
        self._engine = make_game(
            num=1,
            env_name=name,
            rand_seed=seed,
            num_threads=0,
            render_mode="rgb_array",
            use_backgrounds=False,
            restrict_themes=True,
            distribution_mode="easy",
        )

    def save(self) -> bytes:
        """Returns the engine's whole state."""
        return self._engine.callmethod("get_state")[0]

    def act(self, action: int) -> None:
        self._engine.act(np.asarray([action]))

    def draw(self, run: list[_Moment], size: int) -> UInt8[np.ndarray, "F H W 3"]:
        """Draws past moments."""
        frames = np.empty((len(run), size, size, 3), dtype=np.uint8)
        for frame, moment in zip(frames, run, strict=True):
            self._engine.callmethod("set_state", [moment.content])
            self._engine.observe()
            picture = Image.fromarray(self._engine.get_info()[0]["rgb"])
            frame[:] = np.asarray(picture.resize((size, size), Image.Resampling.BOX))
        return frames

    def close(self) -> None:
        self._engine.close()


def _import_engine() -> Any:
    """Returns the engine's class, quietly: gym, which it imports, prints that it is no longer maintained."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from procgen import ProcgenGym3Env
    except ImportError as error:
        raise DataError(
            f"Procgen episodes need the package procgen-mirror, which is missing ({error}): pip install "
            f"'flamscale[sim]', then pip install --no-deps procgen-mirror==0.10.7 gym3==0.3.3 gym==0.26.2."
        ) from error
    return ProcgenGym3Env
