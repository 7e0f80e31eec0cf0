"""Submits the main job on this machine: a recipe's flags in, the job's log and exit code out, no process left behind.

Command: python -m flamscale_cluster.local -- --preset quickstart --data data/quickstart --out runs/quickstart

Starts a Ray head on the loopback interface unless one answers there, submits what `ray job submit` would, follows the
log, and stops what it started, also on Ctrl-C or SIGTERM.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from flamscale import command_line
from flamscale.config import PretrainConfig
from flamscale.errors import ConfigError
from flamscale_cluster.arguments import check_places, is_relative, parse_arguments, places
from flamscale_cluster.head import START_TIMEOUT_S, LocalHead, find_head

RECIPE = Path("recipes/pretrain_large.py")
RUNTIME_ENV = Path("cluster/runtime_env.yaml")
_STOP_TIMEOUT_S = 15.0  # how long a job may take to end after Ray has stopped waiting for it (seconds)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Flags before `--` are about the local Ray head; flags after it are the recipe's."""

    dashboard_port: int = 8265
    """Port of the head's dashboard and job server on 127.0.0.1 (number)."""
    object_store_mib: int = 256
    """Shared memory of the head's object store, which the job hardly uses (MiB)."""


def main(arguments: Sequence[str]) -> None:
    """Runs the recipe as a Ray job; exits with the job's code."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = command_line.parse(Options, arguments[:split], description=__doc__ or "")
    flags = list(arguments[split + 1 :])
    if not RECIPE.exists():
        raise ConfigError(
            f"Expected {RECIPE} under {Path.cwd()}, found none; run this in the repository's root folder."
        )
    chosen = parse_arguments(flags, description=f"Flags of {RECIPE}.")
    if chosen.dry_run:
        from flamscale.dry_run import print_dry_run  # imports torch, which --help shall not wait for

        print_dry_run(chosen.config)
        return
    check_places(chosen.config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        address = find_head(options.dashboard_port)
        if address is None:
            print(f"starting a Ray head on 127.0.0.1:{options.dashboard_port}", flush=True)
            head = LocalHead(options.dashboard_port, options.object_store_mib, _num_cpus(chosen.config))
            address = stack.enter_context(head)
        code = run_job(address, f"python {RECIPE} {shlex.join([*flags, *_absolute(chosen.config)])}")
    sys.exit(code)


def run_job(address: str, entrypoint: str) -> int:
    """Submits a job as `ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml` does, and follows it.

    Args:
        address: the job server, http://host:port.
        entrypoint: shell command of the job.

    Returns:
        The exit code of the job's driver, 1 where it has none.
    """
    os.environ["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""  # the runtime environment has its own list
    from ray.job_submission import JobStatus, JobSubmissionClient

    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1")))
    logging.disable(logging.INFO)  # Ray tells of every file it does not upload
    client = JobSubmissionClient(address)
    runtime_env: dict[str, Any] = yaml.safe_load(RUNTIME_ENV.read_text()) | {"working_dir": "."}
    patient = Retrying(  # for seconds after its start, a head has no agent to run a job yet
        retry=retry_if_exception_message(match=r"(?s).*No available agent"),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(START_TIMEOUT_S),
        reraise=True,
    )
    job = patient(client.submit_job, entrypoint=entrypoint, runtime_env=runtime_env)
    print(f"submitted {job}: {entrypoint}", flush=True)
    try:
        asyncio.run(_follow(client, job))
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopping the job", file=sys.stderr, flush=True)
        client.stop_job(job)
        deadline = time.monotonic() + float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 3)) + _STOP_TIMEOUT_S
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.2)
        raise
    details = client.get_job_info(job)
    return 0 if details.status == JobStatus.SUCCEEDED else details.driver_exit_code or 1


async def _follow(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _num_cpus(config: PretrainConfig) -> int:
    """Cores the head shall count: this machine's, or as many as the workers ask for."""
    return max(os.cpu_count() or 1, config.cluster.num_workers * config.cluster.cpus_per_worker)


def _absolute(config: PretrainConfig) -> list[str]:
    """Flags that name files and folders by their whole paths: the job runs in a copy of this folder."""
    flags = []
    for flag, found in itertools.groupby(places(config), key=lambda item: item[0]):
        given = [place for _, place in found]
        if any(map(is_relative, given)):
            flags += [flag, *(str(Path(place).resolve()) if is_relative(place) else place for place in given)]
    return flags


if __name__ == "__main__":
    command_line.run(main)
