"""Submits a command to a Ray cluster that is just coming up: waits for its nodes, then follows it as a job to its end.

Command: python -m flamscale_cluster.submit --num-nodes 8 -- python recipes/pretrain_large.py --preset large ...

Runs on the head's node, where the job server answers on loopback, in the repository's root folder, which is uploaded.
"""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flamscale import command_line
from flamscale.errors import ClusterError, ConfigError
from flamscale_cluster.head import HOST
from flamscale_cluster.local import run_job

_MOST_NODES = 10_000  # Ray lists no more


@dataclass(frozen=True, kw_only=True)
class Options:
    """Flags before `--` are about the cluster; after it comes the job's command."""

    dashboard_port: int = 8265
    """Port of the head's dashboard and job server on 127.0.0.1 (number)."""
    num_nodes: int = 1
    """Nodes to wait for, the head's included (count)."""
    start_timeout_s: float = 300.0
    """How long they may take to join (seconds)."""


def main(arguments: Sequence[str]) -> None:
    """Runs the command as a Ray job; exits with the job's code."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = command_line.parse(Options, arguments[:split], description=__doc__ or "")
    command = list(arguments[split + 1 :])
    if not command:
        raise ConfigError("Expected the job's command after --, found none; pass python recipes/... and its flags.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = f"http://{HOST}:{options.dashboard_port}"
    wait_for_nodes(address, options.num_nodes, options.start_timeout_s)
    sys.exit(run_job(address, shlex.join(command)))


def wait_for_nodes(address: str, num_nodes: int, timeout_s: float) -> None:
    """Returns when a Ray cluster is complete.

    Args:
        address: its job server, http://host:port; it need not answer yet.
        num_nodes: nodes it shall have.
        timeout_s: how long they may take (seconds).

    Raises:
        ClusterError: there were fewer nodes when the time was over.
    """
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    deadline = time.monotonic() + timeout_s
    joined = 0
    while True:
        before = joined
        with contextlib.suppress(ConnectionError, RayStateApiException):  # nobody answers yet
            joined = len(list_nodes(address, filters=[("state", "=", "ALIVE")], limit=_MOST_NODES))
        if joined != before:
            print(f"{joined} of {num_nodes} nodes have joined", flush=True)
        if joined >= num_nodes:
            return
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Expected {num_nodes} nodes in the Ray cluster at {address} within {timeout_s:.0f} s, found {joined}; "
                "look above for nodes that could not start Ray, or raise --start-timeout-s."
            )
        time.sleep(0.5)


if __name__ == "__main__":
    command_line.run(main)
