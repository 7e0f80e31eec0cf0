"""Conclusions and report of a study: points of known laws in, those laws, figures and every run in the page out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamscale.config import ClusterConfig, DataConfig
from flamscale.presets import PRESETS
from flamscale.scaling.axes import Factors, Seeds
from flamscale.scaling.conclusions import conclude, largest_runs
from flamscale.scaling.cost import Cost
from flamscale.scaling.estimate import Estimate
from flamscale.scaling.figures import draw_isoflops, draw_measures, draw_predictions, draw_sizes_over_videos
from flamscale.scaling.frontier import frontier
from flamscale.scaling.records import Point, RunRecord
from flamscale.scaling.report import report_text
from flamscale.scaling.studies import STUDIES, multigrid_shards
from flamscale.scaling.study import Study
from flamscale.scaling.usage import Usage

BASE = replace(
    PRESETS["quickstart"](), out="study", data=DataConfig(url=("room",)), cluster=ClusterConfig(num_workers=1)
)
STUDY = Study(
    name="factors", question="How many factors?", base=BASE, axes=(Factors(values=(1, 2)), Seeds(values=(0,)))
)


def point(
    loss: float, psnr: float = 30.0, parameters: int = 1_000, num_clips: int = 100, scores=None, **values
) -> Point:
    name = "_".join(f"{key}-{value}" for key, value in values.items())
    cost = Cost(
        parameters=parameters,
        num_clips=num_clips,
        flops=6.0 * parameters * num_clips,
        device_hours=1.0,
        storage_bytes=1,
    )
    return Point(
        name=name, directory=f"study/runs/{name}", commit="0123456789abcdef+", values=values, cost=cost, loss=loss,
        psnr=psnr, scores=scores or {},
    )  # fmt: skip


def noisy(value: float, seed: int, noise: float = 0.01) -> float:
    return float(value * np.exp(np.random.default_rng(seed).normal(0, noise)))


@pytest.fixture(scope="module")
def factor_points() -> list[Point]:
    """PSNR rises by 5 dB with each doubling of K up to the number of agents."""
    return [
        point(
            noisy(0.02, 7 * k + seed), k=k, agents=agents, seed=seed,
            psnr=noisy(40 + 5 * min(np.log2(k / agents), 0), 100 * k + 10 * agents + seed),
            scores={"disentanglement": 0.8, "completeness": 0.7, "informativeness": 0.9},
        )
        for agents in (2, 4) for k in (1, 2, 4, 8) for seed in (0, 1)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def size_points() -> list[Point]:
    """Runs of five budgets with L = 0.01 + 2 N^-0.5 + 3 D^-0.5."""
    budgets, sizes = np.geomspace(1e10, 1e14, 5), np.geomspace(1 / 8, 8, 6)
    points = []
    for budget in budgets:
        for seed, ratio in enumerate(sizes):
            parameters = ratio * np.sqrt(budget / 6)
            clips = budget / 6 / parameters
            loss = noisy(0.01 + 2 * parameters**-0.5 + 3 * clips**-0.5, int(np.log(budget)) + seed)
            points.append(
                point(loss, parameters=round(parameters), num_clips=round(clips), size=f"n{seed}", flops=float(budget))
            )
    return points


@pytest.fixture(scope="module")
def joint_points() -> list[Point]:
    """A grid of four sizes and four numbers of videos with L = 0.01 + 2 N^-0.5 + V^-0.5."""
    return [
        point(
            noisy(0.01 + 2 * parameters**-0.5 + videos**-0.5, parameters + videos, noise=0.001),
            parameters=parameters, size=f"n{number}", videos=videos,
        )
        for number, parameters in enumerate((1_000, 4_000, 16_000, 64_000)) for videos in (8, 32, 128, 512)
    ]  # fmt: skip


def test_data_sets_are_concluded_about_one_by_one(factor_points):
    two, four = conclude(factor_points)
    assert (two.label, four.label) == ("2 agents", "4 agents")
    assert two.saturation is not None
    assert four.saturation is not None
    assert (two.saturation.knee.value, four.saturation.knee.value) == (2, 4)
    assert two.law is None
    assert two.refusals == ()


def test_sizes_and_budgets_give_a_law_a_held_out_prediction_and_parabolas(size_points):
    (group,) = conclude(size_points)
    assert group.law is not None
    assert group.law.exponent("parameters").holds(0.5)
    assert group.law.exponent("clips").holds(0.5)
    assert group.held_out is not None
    assert abs(group.held_out.mean_error) < 0.1
    assert group.isoflops is not None
    assert group.isoflops.exponent.value == pytest.approx(0.5, abs=0.05)


def test_with_budgets_all_runs_of_the_largest_one_are_held_out(size_points):
    common, is_held_out = largest_runs(size_points)
    assert common == "1e+14 FLOPs"
    assert [known.values["flops"] == 1e14 for known in size_points] == is_held_out.tolist()
    (group,) = conclude(size_points)
    text = report_text(STUDY, "python study.py", [group], [], [], [])
    assert "all 6 runs of 1e+14 FLOPs, predicted from the other 24: their mean loss is " in text


def test_without_budgets_all_runs_of_the_largest_value_of_any_size_are_held_out(joint_points):
    common, is_held_out = largest_runs(joint_points)
    assert common == "64,000 parameters or 512 videos"
    largest = [known.values["size"] == "n3" or known.values["videos"] == 512 for known in joint_points]
    assert largest == is_held_out.tolist()
    assert sum(largest) == 7
    (group,) = conclude(joint_points)
    assert group.held_out is not None
    assert abs(group.held_out.mean_error) < 0.1


def test_what_the_runs_do_not_support_is_said_in_the_report(factor_points):
    groups = conclude([known for known in factor_points if known.values["k"] <= 2])
    text = report_text(STUDY, "python study.py", groups, ["k-8"], ["k-1"], ["measures.png"])
    assert "No fit: A saturation curve needs 3 different K and 5 runs or more, found 2 and 4;" in text
    assert "Not finished: k-8." in text
    assert "Stopped early, behind the others on their data, and left out of all fits: k-1." in text


def test_a_score_that_falls_beyond_its_best_k_is_reported_as_falling(factor_points):
    falling = [
        replace(known, psnr=known.psnr - 2 * max(np.log2(known.values["k"] / 2), 0))
        for known in factor_points
        if known.values["agents"] == 2
    ]
    text = report_text(STUDY, "python study.py", conclude(falling), [], [], [])
    assert "from K = 2 (2 to 2) on rollout PSNR falls, by -" in text
    assert "stays level" not in text


def test_the_report_says_which_parts_of_a_run_see_all_videos():
    points = [point(noisy(0.01 + videos**-0.5, videos), videos=videos) for videos in (8, 32, 128, 512)]
    shared = "Tokenizer and median frame are shared, and made of all training videos"
    assert shared in report_text(STUDY, "python study.py", conclude(points), [], [], [])


def test_the_report_tells_what_the_study_took(factor_points):
    usage = Usage(device="GPU", total_s=7_200.0, device_s=28_800.0, held_s=21_600.0)
    text = report_text(STUDY, "python study.py", conclude(factor_points), [], [], [], usage)
    assert "Took 2 h 00 min in all, 8 h 00 min of GPU time; runs held 75% of it." in text


def test_the_report_traces_every_point_to_its_directory_and_commit(factor_points):
    text = report_text(STUDY, "python study.py", conclude(factor_points), [], [], ["measures.png"])
    assert "4 agents: from K = 4 (4 to 4) on rollout PSNR stays level" in text
    rows = [line for line in text.splitlines() if "config.json" in line]
    assert len(rows) == len(factor_points)
    assert all("(runs/k-" in row and "012345678+" in row for row in rows)


def test_the_frontier_is_the_run_of_the_lowest_loss_at_each_budget(size_points):
    best = frontier(conclude(size_points))
    assert [known.values["flops"] for known in best] == sorted({known.values["flops"] for known in size_points})
    for found in best:
        same = [known.loss for known in size_points if known.values["flops"] == found.values["flops"]]
        assert found.loss == min(same)


def test_where_k_varies_the_frontier_is_the_run_of_the_highest_psnr_on_each_data_set(factor_points):
    diverged = replace(factor_points[0], name="diverged", psnr=float("nan"))
    best = frontier(conclude([diverged, *factor_points]))
    assert [found.values["agents"] for found in best] == [2, 4]
    for found in best:
        same = [known.psnr for known in factor_points if known.values["agents"] == found.values["agents"]]
        assert found.psnr == max(same)


def test_figures_are_drawn(factor_points, size_points, joint_points, tmp_path: Path):
    draw_measures(tmp_path / "factors.png", conclude(factor_points))
    groups = conclude(size_points)
    draw_measures(tmp_path / "sizes.png", groups)
    draw_sizes_over_videos(tmp_path / "videos.png", conclude(joint_points))
    draw_predictions(tmp_path / "predictions.png", groups)
    draw_isoflops(tmp_path / "isoflops.png", groups)
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert (pixels < 250).mean() > 0.01
        assert pixels.shape[1] >= 480


def test_an_interval_that_does_not_hold_its_value_is_drawn_too(size_points, tmp_path: Path):
    (group,) = conclude(size_points)
    assert group.held_out is not None
    beside = replace(group.held_out, predicted=(Estimate(value=0.1, low=0.11, high=0.12),) * 6)
    draw_predictions(tmp_path / "predictions.png", [replace(group, held_out=beside)])
    assert (tmp_path / "predictions.png").exists()


def test_attempts_are_recorded_and_only_a_finished_run_counts(tmp_path: Path):
    (run, _) = replace(STUDY, base=replace(BASE, out=str(tmp_path))).runs()
    record = RunRecord(run)
    assert not record.is_finished
    assert [record.begin("one"), record.begin("two")] == [1, 2]
    assert not record.is_finished
    assert [attempt["commit"] for attempt in record.read()["attempts"]] == ["one", "two"]


@pytest.mark.parametrize("name", ["factors", "data", "joint"])  # model counts FLOPs, for a minute
@pytest.mark.parametrize("preset", ["quickstart", "multigrid"])
def test_every_study_without_budgets_lists_its_runs_and_the_data_they_need(name, preset):
    study = STUDIES[name](preset, "shards", "out")
    runs = study.runs()
    assert len({run.config.out for run in runs}) == len(runs) >= 8
    wanted = {job.out for job in multigrid_shards(study, preset)}
    assert wanted == {run.config.data.url[0] for run in runs}
    assert all(Path(out).is_absolute() for out in wanted)
    if name in ("data", "joint"):
        train_samples = 0.8 * multigrid_shards(study, preset)[0].build().episodes
        assert max(run.config.data.train_samples for run in runs) <= train_samples
