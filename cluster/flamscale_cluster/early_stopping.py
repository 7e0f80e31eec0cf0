"""Early stopping of a study: the validation losses of its runs in; which of them to give up, by Ray Tune's rule, out.

Ray Tune's loop would bring a run directory, a resume and a process model of its own beside ours, so it is its scheduler
alone that is asked.
"""

import math
from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Run

_NEVER: Any = math.inf  # when a run with too few others makes room for them; Tune says int
_NO_CONTROLLER: Any = None  # the rule asks it only whom to make room for


class EarlyStopping:
    """Gives up a run whose best loss is above the median of the mean losses of three or more others so far.

    Only runs on the same videos and of the same budget are compared, at the same share of their steps. Source: the
    median rule of Golovin et al., Google Vizier (2017), 3.2.1.

    Args:
        runs: the study; what its runs have on record already counts.
        grace: share of its steps before which a run is never given up.
    """

    def __init__(self, runs: Sequence[Run], grace: float) -> None:
        self._rules = {
            _peers(run): MedianStoppingRule(
                time_attr="share",
                metric="loss",
                mode="min",
                grace_period=grace,
                min_time_slice=_NEVER,
                hard_stop=False,  # a run of an earlier start may report on after it was judged
            )
            for run in runs
        }
        self._trials = {run.name: Trial("train", trial_id=run.name, stub=True) for run in runs}
        self._newest = dict.fromkeys(self._trials, 0)
        for run in runs:
            if RunRecord(run).state != "waiting":
                self.is_hopeless(run)

    def is_hopeless(self, run: Run) -> bool:
        """Takes what a run has recorded since the last call; returns whether it should be stopped."""
        hopeless, num_steps = False, run.config.flam_stage.num_steps
        for item in RunRecord(run).validations:
            if item["step"] <= self._newest[run.name]:
                continue
            self._newest[run.name] = item["step"]
            result = {"share": item["step"] / num_steps, "loss": item["prediction_loss"]}
            action = self._rules[_peers(run)].on_trial_result(_NO_CONTROLLER, self._trials[run.name], result)
            hopeless |= action != TrialScheduler.CONTINUE
        return hopeless and self._newest[run.name] < num_steps


def _peers(run: Run) -> tuple[object, ...]:
    return run.config.data.url, run.config.data.train_samples, run.values.get("flops")
