"""Rows: what is read of a run, means and intervals over seeds and clips, and paired differences."""

import json
import math
from pathlib import Path

from flamscale.reproduce.paper import NUPLAN
from flamscale.reproduce.rows import DCI, PSNR, Difference, Row, paper_rows, read_run


def row(runs: dict[int, list[float]], name: str = "flam") -> Row:
    measured = {seed: {"psnr": values} for seed, values in runs.items()}
    return Row(data="MultiGrid, 2 agents", name=name, title=name, runs=measured, num_seeds=len(runs))


def test_the_mean_is_over_seeds_and_clips():
    found = row({0: [20.0, 22.0], 1: [24.0, 26.0]}).mean(PSNR)
    assert found is not None
    assert found.value == 23.0
    assert 20.0 <= found.low < 23.0 < found.high <= 26.0


def test_a_difference_is_paired_by_seed_and_clip():
    """Clips lie 30 dB apart and seeds 3 dB, and the first is ahead by 1.5 in each: that leaves no doubt."""
    first = row({0: [11.5, 41.5], 1: [14.5, 44.5]})
    second = row({0: [10.0, 40.0], 1: [13.0, 43.0], 2: [0.0, 0.0]}, name="adaworld")
    found = Difference.of(first, second, PSNR)
    assert found is not None
    assert (found.value.value, found.value.low, found.value.high) == (1.5, 1.5, 1.5)
    assert (found.num_above, found.num_seeds) == (2, 2)


def test_the_interval_of_a_difference_is_that_computed_by_hand():
    """Of two clips with differences 0 and 2, resamples have the means 0, 1, 2 with probabilities 1/4, 1/2, 1/4."""
    found = Difference.of(row({0: [30.0, 32.0]}), row({0: [30.0, 30.0]}), PSNR)
    assert found is not None
    assert (found.value.value, found.value.low, found.value.high) == (1.0, 0.0, 2.0)


def test_rows_without_a_common_seed_have_no_difference():
    assert Difference.of(row({0: [1.0]}), row({1: [1.0]}), PSNR) is None
    assert Difference.of(row({0: [1.0]}), row({0: [1.0]}), DCI[0]) is None


def test_a_single_number_has_no_interval():
    found = row({0: [0.9]}).mean(PSNR)
    assert found is not None
    assert found.value == 0.9
    assert math.isnan(found.low)
    assert row({}).mean(PSNR) is None


def test_a_run_is_read_with_its_clips_fvd_and_slots(tmp_path: Path):
    result = {
        "by_clip": {
            "prediction": {"psnr": [1.0, None]},
            "copy_last": {"psnr": [2.0, 2.0]},
            "tokenizer": {"psnr": [3.0, 3.0]},
        },
        "rollout": {"fvd": 7.0, "copy_last_fvd": 8.0},
        "tokenizer": {},
    }
    scores = {"disentanglement": 0.5, "completeness": None, "informativeness": 0.7}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "entities.json").write_text(json.dumps({"dci_flam": scores}))
    found = read_run(tmp_path)
    assert found["copy_last"] == {"psnr": [2.0, 2.0], "fvd": [8.0]}
    assert found["tokenizer"] == {"psnr": [3.0, 3.0]}
    assert found["prediction"]["fvd"] == [7.0]
    assert found["prediction"]["disentanglement"] == [0.5]
    assert math.isnan(found["prediction"]["psnr"][1])
    assert math.isnan(found["prediction"]["completeness"][0])


def test_rows_of_the_paper_alone_have_its_numbers_and_no_runs():
    flam, adaworld, tokenizer = paper_rows(NUPLAN, {"flam": "FLAM", "adaworld": "AdaWorld"})
    assert [of.reported(PSNR) for of in (flam, adaworld, tokenizer)] == [19.7, 18.1, 21.7]
    assert flam.reported(DCI[0]) is None
    assert not flam.runs
    assert [of.name for of in paper_rows(NUPLAN, {"flam": "FLAM"})] == ["flam", "tokenizer"]
