"""Procgen episodes: labels that agree with the pictures, one level each, the same bytes for the same arguments."""

import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from flamscale.data.sources import procgen
from flamscale.data.sources.procgen import ENTITY_TYPES, ProcgenSource, _Game, _import_engine
from flamscale.data.sources.procgen_policy import POLICIES, STAY
from flamscale.data.sources.procgen_state import State, parse_state, track
from flamscale.errors import ConfigError, DataError

GAMES = tuple(ENTITY_TYPES)
PLAYER_COLOURS = {"bigfish": (46, 204, 113), "leaper": (167, 196, 51), "starpilot": (54, 187, 245)}


def _is_near(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 50) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) <= tolerance).all(axis=-1)


def _play(game: str, num_steps: int, policy: Callable[[State], int]) -> list[State]:
    """Returns every state of some steps of play, level after level."""
    engine = _Game(_import_engine(), game, 11)
    states = []
    for _ in range(num_steps):
        states.append(parse_state(engine.save()))
        engine.act(policy(states[-1]))
    engine.close()
    return states


@pytest.mark.parametrize("game", GAMES)
def test_the_player_is_drawn_where_its_label_says(game: str) -> None:
    hits = 0
    for episode in ProcgenSource(game=game, episodes=3, episode_frames=16, size=256):
        assert episode.labels["entity_types"][0] == 0
        for frame, (x, y) in zip(episode.frames, episode.labels["entity_positions"][:, 0], strict=True):
            column, row = int(x), int(y)
            near = frame[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
            hits += _is_near(near, PLAYER_COLOURS[game]).any()
    assert hits == 3 * 16


def test_fish_are_drawn_where_their_labels_say() -> None:
    (episode,) = ProcgenSource(game="bigfish", episodes=1, size=256, seed=4)
    positions = episode.labels["entity_positions"]
    in_frame = episode.labels["entity_present"] & ((positions > 0) & (positions < 256)).all(axis=-1)
    assert in_frame[:, 1:].sum() > 32
    for frame, column in np.argwhere(in_frame):
        x, y = positions[frame, column].astype(int)
        assert episode.frames[frame, y, x].max() > 40  # the water is black


@pytest.mark.parametrize("game", GAMES)
def test_an_entity_keeps_its_column_and_moves_by_its_velocity(game: str) -> None:
    for episode in ProcgenSource(game=game, episodes=3, size=128):
        labels = episode.labels
        present, positions = labels["entity_present"], labels["entity_positions"]
        stays = present[:-1] & present[1:]
        stays[:, 0] = False  # the player's velocity changes before it moves
        expected = (positions[:-1] + labels["entity_velocities"][:-1])[stays]
        np.testing.assert_allclose(positions[1:][stays], expected, atol=0.02)
        assert stays.any()
        assert present[:, 0].all()
        appearances = present[0].astype(int) + (np.diff(present.astype(int), axis=0) == 1).sum(axis=0)
        assert (appearances == 1).all()  # nothing vanishes and comes back
        assert set(labels["entity_types"].tolist()) <= set(ENTITY_TYPES[game])
        assert not positions[~present].any()


def test_there_are_as_many_columns_as_the_engine_made_entities() -> None:
    states = _play("starpilot", 150, POLICIES["starpilot"])
    assert not any(state.level_start for state in states[1:])
    num_new = sum(int((state.entities["life_time"] == 0).sum()) for state in states[1:])
    assert num_new > 20
    assert len(track(states, 64).types) == len(states[0].entities) + num_new


@pytest.mark.parametrize("game", GAMES)
def test_the_recorded_actions_replay_the_episode(game: str) -> None:
    source = ProcgenSource(game=game, episodes=1, episode_frames=12, size=64)
    engine_seed, action_seed = np.random.SeedSequence([0, 0]).generate_state(2, dtype=np.uint32)
    run, _ = source._find_run(_Game(_import_engine(), game, int(engine_seed) // 2), np.random.default_rng(action_seed))
    (episode,) = source
    engine = _Game(_import_engine(), game, 1)
    engine._engine.callmethod("set_state", [run[0].content])
    for step, action in enumerate(episode.labels["actions"]):
        engine.act(int(action))
        assert engine._engine.observe()[0][0] == episode.labels["rewards"][step]
        drawn_live = engine._engine.get_info()[0]["rgb"]
        (kept,) = engine.draw([run[step + 1]], 512)
        np.testing.assert_array_equal(kept, drawn_live)


def test_an_episode_depends_on_the_seed_and_its_number_alone() -> None:
    def first(count: int, **arguments: int) -> list:
        return list(islice(ProcgenSource(game="starpilot", episode_frames=8, size=64, **arguments), count))

    few, many, other = first(2, episodes=2), first(2, episodes=20), first(2, episodes=2, seed=1)
    for here, there, elsewhere in zip(few, many, other, strict=True):
        np.testing.assert_array_equal(here.frames, there.frames)
        assert here.labels.keys() == there.labels.keys()
        for name, values in here.labels.items():
            np.testing.assert_array_equal(values, there.labels[name])
        assert (here.frames != elsewhere.frames).any()
    assert (few[0].frames != few[1].frames).any()


def test_an_episode_never_crosses_into_another_level() -> None:
    source = ProcgenSource(game="leaper", episodes=6, episode_frames=24, size=64)
    dropped = 0
    for episode in source:
        finish = episode.labels["entity_types"] == 5
        assert finish.sum() == 1  # every level has one finish line, and it never leaves
        assert episode.labels["entity_present"][:, finish].all()
        dropped += episode.info["dropped_levels"]
    assert dropped > 0  # leaper has levels of two hops


@pytest.mark.parametrize("game", GAMES)
def test_scripted_players_earn_several_times_what_random_ones_do(game: str) -> None:
    rng = np.random.default_rng(0)
    scripted = sum(state.reward for state in _play(game, 1000, POLICIES[game]))
    random = sum(state.reward for state in _play(game, 1000, lambda _: int(rng.integers(9))))
    assert scripted > 3 * random
    assert scripted > 50


def test_the_share_of_random_actions_is_as_asked() -> None:
    (episode,) = ProcgenSource(game="leaper", episodes=1, episode_frames=24, size=64, random_action_share=0.0)
    assert (episode.labels["actions"] == STAY).mean() > 0.5  # a frog in the air has nothing to do
    (episode,) = ProcgenSource(game="leaper", episodes=1, episode_frames=24, size=64, random_action_share=1.0)
    assert len(np.unique(episode.labels["actions"])) > 5


def test_levels_that_are_all_too_short_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procgen, "_MAX_DROPPED", 3)
    with pytest.raises(DataError, match=r"Not one of 3 levels of leaper lasted 600 frames: choose a smaller"):
        next(iter(ProcgenSource(game="leaper", episode_frames=600)))


def test_a_state_of_another_version_is_told() -> None:
    with pytest.raises(DataError, match=r"laid out as in procgen-mirror 0\.10\.7 and is not \(format 7, expected 0\)"):
        parse_state(np.asarray([7, 0, 0], dtype="<i4").tobytes())
    engine = _Game(_import_engine(), "bigfish", 0)
    with pytest.raises(DataError, match="laid out as in procgen-mirror"):
        parse_state(engine.save()[:-400])


def test_nothing_is_printed_or_warned() -> None:
    program = (
        "from flamscale.data.sources.procgen import ProcgenSource; next(iter(ProcgenSource(episode_frames=2, size=16)))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_a_missing_package_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "procgen", None)
    with pytest.raises(DataError, match=r"need the package procgen-mirror, which is missing .*pip install --no-deps"):
        next(iter(ProcgenSource()))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"game": "coinrun"}, "game must be one of bigfish, leaper, starpilot, got 'coinrun'"),
        ({"size": 15}, "size must be an even number of pixels, 16 to 512, got 15"),
        ({"size": 514}, "size must be an even number of pixels, 16 to 512, got 514"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"episode_frames": 1}, "episode-frames must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"random_action_share": 1.5}, "random-action-share must lie between 0 and 1, got 1.5"),
    ],
)
def test_impossible_settings_are_told(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProcgenSource(**setting)
