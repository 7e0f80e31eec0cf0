"""A run's records as Ray metrics: each record in; gauges on its node's Prometheus endpoint, beside Ray's own, out.

Every number of a training record shows as `ray_flamscale_<name>`, of a validation record as
`ray_flamscale_validation_<name>`, with the tags stage and run; cluster/grafana.json draws them.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

_TAGS = ("stage", "run")


class RayMetrics:
    """Observes the records of one run, in a process that Ray started; what it shows goes with the process."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Shows a record's numbers until the next one of its stage."""
        prefix = "" if record["kind"] == "train" else f"{record['kind']}_"
        for name, value in record.items():
            if isinstance(value, int | float):
                self._gauge(f"flamscale_{prefix}{name}").set(value, {"stage": record["stage"], "run": self._run})

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, "see flamscale/training/metrics.py", _TAGS)
        return self._gauges[name]
