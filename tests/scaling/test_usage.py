"""What a study took, over the drivers it had."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flamscale.scaling import usage
from flamscale.scaling.usage import Meter, Usage, read_usage


def test_the_time_of_all_drivers_is_added_up_and_that_of_a_killed_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moments = iter([0.0, 600.0, 1_800.0, 9_000.0, 10_800.0])
    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    assert read_usage(tmp_path) is None
    killed = Meter(tmp_path, "CPU")
    killed.count(held=0.0, devices=2.0)
    killed.count(held=2.0, devices=2.0)
    second = Meter(tmp_path, "CPU")
    second.count(held=1.0, devices=2.0)
    assert (
        read_usage(tmp_path) == second.usage == Usage(device="CPU", total_s=3_600.0, device_s=7_200.0, held_s=4_200.0)
    )
    assert str(second.usage) == "1 h 00 min in all, 2 h 00 min of CPU time; runs held 58% of it"
