"""Processes do the work of one process: all of it once, errors told, killed processes replaced."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from flamscale.data.executors import Processes, serial
from flamscale.errors import VideoError


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise VideoError(f"number {number} is refused")


def die_at_first(folder: Path, number: int) -> int:
    """Kills its own process the first time it comes to 3."""
    mark = folder / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("executor", [serial, Processes(num_workers=2)])
def test_every_item_is_worked_on_once(executor) -> None:
    assert sorted(executor(square, range(30))) == [number * number for number in range(30)]


@pytest.mark.parametrize("executor", [serial, Processes(num_workers=2)])
def test_an_error_of_the_work_comes_as_it_is(executor) -> None:
    with pytest.raises(VideoError, match=r"^number \d is refused$"):
        list(executor(refuse, range(3)))


def test_what_a_killed_process_was_at_is_done_again(tmp_path: Path) -> None:
    work = partial(die_at_first, tmp_path)
    assert sorted(Processes(num_workers=2)(work, range(8))) == list(range(8))
    assert (tmp_path / "died").exists()


def test_an_item_that_always_kills_its_process_is_told() -> None:
    with pytest.raises(Exception, match=r"A worker process was killed 4 times, .* these: 7; with little memory"):
        list(Processes(num_workers=1)(die, [7]))
