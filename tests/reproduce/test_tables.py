"""Tables as studies: which runs they have, which they share, and what their rows change."""

import itertools
from dataclasses import replace

import pytest

from flamscale.config import PretrainConfig, ReproduceConfig
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS
from flamscale.reproduce.budgets import BUDGETS
from flamscale.reproduce.paper import REPORTED
from flamscale.reproduce.rows import DCI, FVD, LPIPS, PSNR, SSIM, data_title
from flamscale.reproduce.tables import TABLES, shards_of
from flamscale.reproduce.variants import (
    ADAWORLD,
    BASELINES,
    FLAM,
    GLOBAL_COUPLING,
    PREVIOUS_FRAME,
    Variants,
    with_beta,
    with_slots,
)
from flamscale.scaling.study import Run

BASE = PRESETS["quickstart"]()


def config(table: str, budget: str, **changes: str) -> ReproduceConfig:
    return ReproduceConfig(table=table, budget=budget, data="/data", out="/out", **changes)


def runs(table: str, budget: str) -> list[Run]:
    return [run for study in TABLES[table].studies(config(table, budget)) for run in study.runs()]


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_run_of_one_name_is_the_same_run_in_every_table(budget):
    by_name: dict[str, PretrainConfig] = {}
    shared = 0
    for table in TABLES:
        for run in runs(table, budget):
            shared += run.name in by_name
            assert by_name.setdefault(run.name, run.config) == run.config
    assert shared >= len(BUDGETS[budget].seeds) * (len(TABLES) - 1)


def test_runs_of_different_names_learn_something_different():
    everything = {run.name: run.config for table in TABLES for run in runs(table, "hour")}
    for (_, one), (_, other) in itertools.combinations(everything.items(), 2):
        assert replace(one, out="") != replace(other, out="")


def test_the_second_table_of_the_hour_needs_no_run_that_the_first_has_not():
    first, second = ({run.name for run in runs(table, "hour")} for table in ("prediction", "dci"))
    assert second < first
    assert len(first) == 2 * 6 * 3


def test_full_is_the_paper_s_setting_with_games_and_the_hour_is_the_quickstart_s():
    full = TABLES["prediction"].studies(config("prediction", "full"))
    assert [study.base.flam for study in full] == [PRESETS["multigrid"]().flam, PRESETS["procgen"]().flam]
    assert {data_title(run.values) for run in full[1].runs()} == {"Bigfish", "Leaper", "Starpilot"}
    (hour,) = TABLES["prediction"].studies(config("prediction", "hour"))
    assert (hour.base.flam, hour.base.tokenizer) == (BASE.flam, BASE.tokenizer)


def test_data_sets_are_made_where_the_runs_read_them():
    for budget in BUDGETS:
        for table in TABLES.values():
            for study in table.studies(config(table.name, budget)):
                made = [job.out for job in shards_of(study, BUDGETS[budget])]
                assert sorted(made) == sorted({run.config.data.url[0] for run in study.runs()})


def test_weights_that_are_given_measure_every_run():
    (study,) = TABLES["dci"].studies(config("dci", "smoke", lpips_weights="/weights/lpips.safetensors"))
    assert {run.config.evaluation.lpips_weights for run in study.runs()} == {"/weights/lpips.safetensors"}


def test_a_variant_changes_what_it_is_named_after_and_nothing_else():
    assert FLAM.change(BASE) == BASE
    assert PREVIOUS_FRAME.change(BASE) == replace(BASE, flam=replace(BASE.flam, binding="previous-frame"))
    assert GLOBAL_COUPLING.change(BASE) == replace(BASE, flam=replace(BASE.flam, coupling="global"))
    assert with_slots(8).change(BASE) == replace(BASE, flam=replace(BASE.flam, num_slots=8, action_width=12))


def test_beta_is_the_paper_s_over_the_values_its_error_is_a_sum_of():
    num_values = 64 * 32  # tokens x channels of the quickstart
    assert with_beta(2e-3).change(BASE).flam_stage.beta == pytest.approx(2e-3 / num_values)
    paper = PRESETS["multigrid"]()
    assert with_beta(2e-4).change(paper).flam_stage.beta == pytest.approx(paper.flam_stage.beta)


def test_a_k_that_does_not_divide_the_width_of_all_actions_is_refused():
    with pytest.raises(ConfigError, match=r"K must divide the action width .*, got K = 5 and 96;"):
        list(Variants(values=(with_slots(5),)).choices(BASE))


def test_a_variant_of_a_baseline_is_refused():
    with pytest.raises(ConfigError, match="made of a run that trains FLAM, got one with a monolithic model"):
        PREVIOUS_FRAME.change(ADAWORLD.change(BASE))


def test_every_number_of_the_paper_has_a_row_and_a_column():
    known = {FLAM.name, "tokenizer", *(variant.name for variant in BASELINES)}
    for table in TABLES.values():
        known |= {variant.paper or variant.name for variant in table.variants(BUDGETS["full"])}
    metrics = {metric.name for metric in (PSNR, SSIM, LPIPS, FVD, *DCI)}
    for number in REPORTED:
        assert number.row in known
        assert number.values.keys() <= metrics
