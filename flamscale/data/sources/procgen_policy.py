"""A Procgen state in, an action out: scripted players that read the simulator's state and look a few steps ahead.

Every player picks the action that lives longest over the next steps, all else moving on in a straight line; among
those, the one that leads to its goal. The paper recorded trained PPG experts; these are not experts, but they live
long enough for video in which the player acts with a purpose.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int64

from flamscale.data.sources.procgen_state import State

STAY, UP, FIRE = 4, 5, 9
NUM_MOVES = 9  # action 3 i + j moves by i - 1 to the right and j - 1 upwards
_MOVES = np.asarray([(action // 3 - 1, action % 3 - 1) for action in range(NUM_MOVES)], dtype=np.float64)

# Types of entities, as the engine's sources number them.
_STARPILOT_FLYER, _STARPILOT_FINISH = 4, 9
_STARPILOT_HARMLESS = (0, 1, 6, *range(54, 60))  # player, its bullets, clouds, explosions and trails
_LEAPER_LOG, _LEAPER_WATER, _LEAPER_CAR = 1, 3, 4

_LOOKAHEAD_STEPS = 12
_MARGIN = 0.15  # distance kept beyond the engine's own collision boxes (tiles)
_BIGFISH_SPEED, _STARPILOT_SPEED = 0.5, 0.75  # the engine's maxspeed (tiles a step)
_BULLET_SPEED, _BULLET_RADIUS = 0.8, 0.4  # of the player's bullets in starpilot (tiles a step, tiles)
_HOP = (0.4, 0.3, 0.2, 0.1, 0.0)  # how far each step of a frog's hop takes it (tiles)
_LOG_REACH = 0.45  # a frog whose centre is nearer than this to a log's stands on it (tiles)


def bigfish(state: State) -> int:
    """Swims after the fish that is soonest met among those it can eat, away from those that would eat it."""
    player, fish = state.player, state.entities[state.entities["type"] != 0]
    paths = _glide(state, _BIGFISH_SPEED)
    bigger = fish["rx"] > player["rx"]
    deaths = _first_collision(paths, player, fish[bigger])
    food = _straight(fish[~bigger])
    if food.shape[0]:
        goal = np.linalg.norm(paths[:, None] - food[None], axis=-1).min(axis=(1, 2))
    else:
        goal = np.linalg.norm(paths[:, -1] - state.world_tiles / 2, axis=-1)
    return _best(deaths, goal)


def starpilot(state: State) -> int:
    """Shoots whatever comes in line, flies to where the next enemy will be, away from all that would hit it."""
    player, entities = state.player, state.entities
    paths = _glide(state, _STARPILOT_SPEED)
    lethal = ~np.isin(entities["type"], (*_STARPILOT_HARMLESS, _STARPILOT_FINISH))
    deaths = _first_collision(paths, player, entities[lethal])
    enemies = entities[(entities["type"] == _STARPILOT_FLYER) & (entities["x"] > player["x"] + 1)]
    steps = (enemies["x"] - player["x"]) / (_BULLET_SPEED - enemies["vx"])  # until a bullet meets it
    heights = enemies["y"] + enemies["vy"] * steps
    in_line = np.abs(heights - player["y"]) < enemies["ry"] + _BULLET_RADIUS
    if in_line.any() and deaths[STAY] == deaths.max():
        return FIRE
    height = heights[np.argmin(steps + np.abs(heights - player["y"]))] if len(enemies) else state.world_tiles / 2
    goal = np.abs(paths[:, 3, 1] - height) + 0.2 * np.abs(paths[:, 3, 0] - state.world_tiles / 5)
    return _best(deaths, goal)


def leaper(state: State) -> int:
    """Hops up whenever it then lives on; else waits or hops aside, whichever lives longest."""
    player = state.player
    if player["vx"] or player["vy"]:
        return STAY  # in the air, where no action takes effect
    hops = np.asarray([(0, 1), (0, 0), (-1, 0), (1, 0), (0, -1)])  # in order of preference
    deaths = [_frog_death(state, hop) for hop in hops]
    x, y = hops[int(np.argmax(deaths))]  # the first of the best
    return int(3 * (x + 1) + y + 1)


POLICIES: dict[str, Callable[[State], int]] = {"bigfish": bigfish, "leaper": leaper, "starpilot": starpilot}


def _best(deaths: Int64[np.ndarray, "9"], goal: Float[np.ndarray, "9"]) -> int:
    """Returns the action that dies last and, among those, ends nearest to the goal."""
    return int(np.lexsort((goal, -deaths))[0])


def _glide(state: State, max_speed: float) -> Float[np.ndarray, "9 steps 2"]:
    """Where the player would be after 1, 2, ... steps of each move, as the engine computes it."""
    player = state.player
    velocity = np.repeat([[player["vx"], player["vy"]]], NUM_MOVES, axis=0).astype(np.float64)
    position = np.repeat([[player["x"], player["y"]]], NUM_MOVES, axis=0).astype(np.float64)
    radius = float(player["rx"])
    paths = np.empty((NUM_MOVES, _LOOKAHEAD_STEPS, 2))
    for step in range(_LOOKAHEAD_STEPS):
        velocity = 0.9 * (0.5 * velocity + 0.5 * max_speed * _MOVES)
        position = np.clip(position + velocity, radius, state.world_tiles - radius)
        paths[:, step] = position
    return paths


def _straight(entities: np.ndarray) -> Float[np.ndarray, "n steps 2"]:
    """Where entities will be after 1, 2, ... steps at their present velocity."""
    steps = np.arange(1, _LOOKAHEAD_STEPS + 1)
    return np.stack([entities[axis][:, None] + entities[f"v{axis}"][:, None] * steps for axis in "xy"], axis=-1)


def _first_collision(
    paths: Float[np.ndarray, "moves steps 2"], player: np.void, threats: np.ndarray
) -> Int64[np.ndarray, "moves"]:
    """Returns the first step of each path that touches a threat; the number of steps where none does."""
    reach = np.stack([threats["rx"] + player["rx"], threats["ry"] + player["ry"]], axis=-1) + _MARGIN
    apart = np.abs(paths[:, None] - _straight(threats)[None])  # [moves, threats, steps, 2]
    return _first_true((apart < reach[None, :, None]).all(axis=-1).any(axis=1))


def _first_true(hits: Bool[np.ndarray, "moves steps"]) -> Int64[np.ndarray, "moves"]:
    return np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])


def _frog_death(state: State, hop: Int64[np.ndarray, "2"]) -> int:
    """Returns the step in which a frog that hops so and then waits dies or is lost, at most _LOOKAHEAD_STEPS."""
    player, world = state.player, state.world_tiles
    cars = state.entities[state.entities["type"] == _LEAPER_CAR]
    logs = state.entities[state.entities["type"] == _LEAPER_LOG]
    x, y = float(player["x"]), float(player["y"])
    for step in range(_LOOKAHEAD_STEPS):
        if step < len(_HOP):
            x, y = x + _HOP[step] * hop[0], y + _HOP[step] * hop[1]
        apart_x = np.abs(cars["x"] + cars["vx"] * (step + 1) - x) - cars["rx"] - player["rx"]
        if ((apart_x < _MARGIN) & (np.abs(cars["y"] - y) < cars["ry"] + player["ry"])).any():
            return step
        under = (np.abs(logs["x"] + logs["vx"] * (step + 1) - x) < _LOG_REACH) & (np.abs(logs["y"] - y) < _LOG_REACH)
        standing = not hop.any() or step >= len(_HOP) - 1
        in_world = 0 <= x < world and 0 <= y < world
        on_water = in_world and state.grid[int(y), int(x)] == _LEAPER_WATER
        if not in_world or (standing and on_water and not under.any()):
            return step
        if under.any():
            x += float(logs["vx"][under][0])
    return _LOOKAHEAD_STEPS
