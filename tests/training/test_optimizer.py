"""Learning rate and parameter groups."""

from itertools import pairwise

import pytest

from flamscale.training.optimizer import build_optimizer, learning_rate, parameter_groups, set_learning_rate
from tests.training.toy import ToyObjective, toy_config


def test_learning_rate_rises_linearly_then_stays() -> None:
    config = toy_config(learning_rate=1.0, warmup_steps=4, num_steps=10)
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates == [0.25, 0.5, 0.75] + [1.0] * 7


def test_cosine_goes_from_the_peak_to_the_smallest_rate_at_the_last_step() -> None:
    config = toy_config(learning_rate=2.0, warmup_steps=2, num_steps=12, schedule="cosine", min_lr_ratio=0.1)
    rates = [learning_rate(step, config) for step in range(12)]
    assert rates[1] == 2.0
    assert rates[6] == pytest.approx(0.5 * (2.0 + 0.2))
    assert rates[11] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[1:]))


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, toy_config(learning_rate=3.0, warmup_steps=0)) == 3.0


def test_only_matrices_decay() -> None:
    groups = parameter_groups(ToyObjective(), weight_decay=0.1)
    assert {(group["weight_decay"], parameter.ndim) for group in groups for parameter in group["params"]} == {
        (0.1, 2),
        (0.0, 1),
    }


def test_without_decay_there_is_a_group_for_each_learning_rate_and_none_for_frozen_parameters() -> None:
    objective = ToyObjective()
    assert [len(group["params"]) for group in parameter_groups(objective, weight_decay=0.0)] == [9, 1]
    objective.head.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(objective, weight_decay=0.0)] == [8]


def test_a_parameter_may_ask_for_a_share_of_the_learning_rate() -> None:
    objective = ToyObjective()
    optimizer = build_optimizer(objective, toy_config())
    set_learning_rate(optimizer, 0.4)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates[id(objective.head.weight)] == 0.1
    assert rates[id(objective.head.bias)] == 0.4
