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
                self._remember(run, self._new_results(run))

    def is_hopeless(self, run: Run) -> bool:
        """Takes what a run has recorded since the last call; returns whether it should be stopped."""
        results = self._new_results(run)
        if not results:
            return False
        self._remember(run, results[:-1])
        action = self._rules[_peers(run)].on_trial_result(_NO_CONTROLLER, self._trials[run.name], results[-1])
        return action != TrialScheduler.CONTINUE and results[-1]["share"] < 1

    def _new_results(self, run: Run) -> list[dict[str, float]]:
        """Returns what a run has recorded since the last call, as the rule takes it."""
        new = [item for item in RunRecord(run).validations if item["step"] > self._newest[run.name]]
        if new:
            self._newest[run.name] = new[-1]["step"]
        num_steps = run.config.flam_stage.num_steps
        return [{"share": item["step"] / num_steps, "loss": item["prediction_loss"]} for item in new]

    def _remember(self, run: Run, results: Sequence[dict[str, float]]) -> None:
        """Has results count against other runs; their own run is not judged by them, as it is past them."""
        for result in results:
            self._rules[_peers(run)].on_trial_complete(_NO_CONTROLLER, self._trials[run.name], result)


def _peers(run: Run) -> tuple[object, ...]:
    return run.config.data.url, run.config.data.train_samples, run.values.get("flops")
