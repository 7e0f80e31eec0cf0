"""Whether two configs are of one run: this config, and one that was written down, in; what differs in learning out."""

import json
from collections.abc import Sequence
from typing import Any

from flamscale.config import PretrainConfig, from_dict, to_json
from flamscale.errors import CheckpointError, ConfigError

_FREE_SECTIONS = ("out", "copy_to", "evaluation", "cluster", "profile")
_FREE_SETTINGS = (
    "micro_batch",
    "url",
    "latents",
    "num_processes",
    "decode_backend",
    "decode_threads",
    "prefetch_batches",
    "shard_cache",
    "shard_cache_gib",
    "fetch_cache_mib",
    "cache_mib",
    "kernels",
    "attention",
    "max_bad_fraction",
    "log_every",
    "validate_every",
    "validation_clips",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "spike_factor",
    "max_rewinds",
)
"""Settings that may change between two submissions of one run: none of them changes what sound data teach.

The data set may move; checkpoints and tokenizer know its content.
"""


def check_same_settings(config: PretrainConfig, text: str, place: str, free: Sequence[str] = ()) -> None:
    """Raises ConfigError if the config.json of `place` differs in what is learned; CheckpointError if it is damaged.

    `free` names sections that may differ besides.
    """
    try:
        there = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"The config.json of {place} is no JSON file ({error}); delete {place}.") from error
    # A setting that did not exist yet when the run began had today's default.
    there = json.loads(to_json(from_dict(PretrainConfig, there)))
    here = json.loads(to_json(config))
    changes = differences(there | {name: here[name] for name in free}, here)
    if changes:
        more = f"; and {len(changes) - 4} more" if len(changes) > 4 else ""
        raise ConfigError(
            f"{place} holds a run with other settings: {'; '.join(changes[:4])}{more}; choose another place, use its "
            "settings, or delete it."
        )


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Names the settings that differ and change what is learned."""
    changes = []
    for name in sorted(there.keys() | here.keys()):
        if name in (_FREE_SETTINGS if prefix else _FREE_SECTIONS):
            continue
        before, now = there.get(name), here.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            changes += differences(before, now, f"{prefix}{name}.")
        elif before != now:
            changes.append(f"{prefix}{name} is {before} there and {now} here")
    return changes
