"""The run directory: a config in; the place of everything a run writes, and whether the directory is this run's, out.

config.json is written first; all checkpoints belong to that config. Submitting the job again with the same settings
resumes the run; with other settings it is refused.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from flamscale.config import PretrainConfig, TokenizerConfig, from_dict, to_json
from flamscale.data import storage
from flamscale.errors import CheckpointError, ConfigError, DataError
from flamscale.models.tokenizer import Tokenizer
from flamscale.same_settings import check_same_settings, differences
from flamscale.training.checkpoint import CheckpointStore, read_meta
from flamscale.training.mirror import Mirror
from flamscale.training.retention import folder_name, step_of

STAGES = ("tokenizer", "flam")
"""Names of the stages, in the order of training."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer from elsewhere."""

    tokenizer: Tokenizer
    """Frozen, in eval mode, on the CPU."""
    place: str
    """Run directory or exported model it was found in."""
    manifest_hash: str | None
    """The data set it was trained on; None for an exported model, which does not tell."""


def find_tokenizer(place: str) -> TrainedTokenizer:
    """Reads the tokenizer of a run directory whose stage 1 is finished, or of an exported model.

    Raises:
        ConfigError: the place is neither.
        CheckpointError: its files are damaged.
    """
    directory = RunDirectory(Path(place))
    if directory.has_tokenizer:
        description = directory.describe_tokenizer()
        trained_on = description.get("trained_on", description["manifest_hash"])
        return TrainedTokenizer(directory.read_tokenizer(), place, trained_on)
    if not (Path(place) / "model.safetensors").exists():
        raise ConfigError(
            f"Expected a trained tokenizer in {place}, found none: pass a run directory whose stage 1 is finished, or "
            f"the model/ folder of a finished run."
        )
    from flamscale.models.huggingface import FlamForWorldModeling  # seconds to import

    model = FlamForWorldModeling.from_pretrained(place)
    return TrainedTokenizer(model.tokenizer.eval().requires_grad_(False), place, None)


@dataclass(frozen=True)
class RunDirectory:
    """Where each thing of a run lies."""

    root: Path

    @classmethod
    def of(cls, config: PretrainConfig) -> "RunDirectory":
        """Returns the directory on this node; raises ConfigError if its name has a variable that is not set here."""
        root = os.path.expandvars(config.out)
        if "$" in root:
            raise ConfigError(
                f"--out {config.out} names an environment variable that node {gethostname()} lacks; set it."
            )
        return cls(Path(root))

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of one stage."""
        return self.root / "checkpoints" / stage

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def model(self) -> Path:
        """The exported model in Hugging Face form."""
        return self.root / "model"

    @property
    def tokenizer(self) -> Path:
        """Weights and description of the finished stage 1."""
        return self.root / "tokenizer"

    @property
    def median_frame(self) -> Path:
        return self.root / "median_frame.safetensors"

    @property
    def stacks(self) -> Path:
        """Stack traces of processes that hung."""
        return self.root / "stacks"

    @property
    def leave_notice(self) -> Path:
        """A file that tells a run, once it is there, to save a checkpoint and end."""
        return self.root / "leave"

    @property
    def metrics(self) -> Path:
        """Records of training."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events of the same records."""
        return self.root / "tensorboard"

    def create(self) -> None:
        """Creates the directory; raises ConfigError if it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            storage.check_writable(str(self.root))
        except (OSError, DataError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            reason = getattr(cause, "strerror", None) or error
            raise ConfigError(
                f"The run directory {self.root} cannot be written: {reason}; choose another --out, or change its "
                "rights."
            ) from error

    def restore(self, config: PretrainConfig, mirror: Mirror) -> list[str]:
        """Brings back from the run's copy in an object store what is further there than here; returns the names.

        Where nodes share no disk, checkpoints stay there, and records always come from there: rank 0 may have moved.

        Raises:
            ConfigError: the copy is of a run with other settings.
            DataError: the store cannot be reached.
        """
        files = mirror.files()
        description = f"{self.tokenizer.name}/tokenizer.json"
        if self.config.name in files:
            place = storage.join(mirror.url, self.config.name)
            free = []
            if description in files and config.tokenizer_from:
                there = json.loads(storage.read_bytes(storage.join(mirror.url, description)))
                free = ["tokenizer_from"] if _is_tokenizer_of(config.tokenizer_from, there) else []
            check_same_settings(config, storage.read_bytes(place).decode(), mirror.url, free)
        wanted = [path.name for path in (self.config, self.median_frame) if path.name in files and not path.exists()]
        if description in files and not self.has_tokenizer:
            wanted.append(self.tokenizer.name)
        needs_tokenizer = not self.has_tokenizer and self.tokenizer.name not in wanted
        records = {path.name for path in (self.metrics, self.tensorboard)} & {name.partition("/")[0] for name in files}
        if config.cluster.local_out:
            wanted += records
            if description not in files:  # or the node that wrote it would be further than the others
                shutil.rmtree(self.tokenizer, ignore_errors=True)
        stages = STAGES if needs_tokenizer else STAGES[1:]
        for stage in () if config.cluster.local_out else stages:
            folder = self.checkpoints(stage)
            name = folder.relative_to(self.root).as_posix()
            there, here = mirror.newest_checkpoint(name, files), CheckpointStore(folder, keep=1).latest()
            if there and (here is None or there > (step_of(here.name) or 0)):
                wanted += [f"{name}/{folder_name(there)}", *records]
        for name in dict.fromkeys(wanted):
            mirror.fetch(name, files)
        return list(dict.fromkeys(wanted))

    def open(self, config: PretrainConfig, manifest_hash: str) -> None:
        """Creates the directory and its config.json, or checks that it holds this run; a refused one stays as it is.

        A run that has learned nothing yet, and has a checkpoint of step 0 at most, gives way to this one.

        Raises:
            ConfigError: it cannot be written, or holds a run with other settings.
            CheckpointError: it holds a run on another data set.
        """
        self.create()
        names = [path.name.removesuffix(".replaced") for path in self.root.glob("checkpoints/*/*")]
        if self.has_tokenizer or any(map(step_of, names)):
            if self.config.exists():
                moved = self.has_tokenizer and _is_tokenizer_of(config.tokenizer_from, self.describe_tokenizer())
                free = ["tokenizer_from"] if moved else []
                check_same_settings(config, self.config.read_text(), f"The run directory {self.root}", free)
            self._check_same_data(config, manifest_hash)
        else:
            shutil.rmtree(self.root / "checkpoints", ignore_errors=True)
        storage.write_bytes(str(self.config), to_json(config).encode())

    def _check_same_data(self, config: PretrainConfig, manifest_hash: str) -> None:
        """Checks what the run would find out later, where it goes on from the tokenizer and the newest checkpoint."""
        if self.has_tokenizer:
            self._check_tokenizer(config.tokenizer, manifest_hash)
        newest = CheckpointStore(self.checkpoints("flam" if self.has_tokenizer else "tokenizer"), keep=1).latest()
        if newest is None:
            return
        there = read_meta(newest)["loader_state"]["manifest_hash"]
        if there != manifest_hash:
            raise CheckpointError(
                f"The checkpoint {newest} was trained on another data set (manifest {there[:12]}, now "
                f"{manifest_hash[:12]}); choose another --out, or the data it was trained on."
            )

    def save_tokenizer(
        self, tokenizer: Tokenizer, manifest_hash: str, taken_from: TrainedTokenizer | None = None
    ) -> None:
        """Writes the run's tokenizer; its description comes last and makes it count.

        Args:
            tokenizer: its weights.
            manifest_hash: the data set of this run.
            taken_from: where it comes from, unless this run trained it.
        """
        self.tokenizer.mkdir(exist_ok=True)
        weights = self.tokenizer / "tokenizer.safetensors"
        state = {name: value.contiguous() for name, value in tokenizer.state_dict().items()}
        storage.write_bytes(str(weights), save(state))
        description: dict[str, Any] = {
            "config": dataclasses.asdict(tokenizer.config),
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "manifest_hash": manifest_hash,
        }
        if taken_from is not None:
            description |= {"taken_from": taken_from.place, "trained_on": taken_from.manifest_hash}
        storage.write_bytes(str(self.tokenizer / "tokenizer.json"), json.dumps(description, indent=2).encode())

    @property
    def has_tokenizer(self) -> bool:
        """Whether stage 1 is finished."""
        return (self.tokenizer / "tokenizer.json").exists()

    def load_tokenizer(self, config: TokenizerConfig, manifest_hash: str) -> Tokenizer:
        """Reads the finished tokenizer, frozen, in eval mode, on the CPU.

        Raises:
            CheckpointError: it is damaged, of another config, or was trained on another data set.
        """
        self._check_tokenizer(config, manifest_hash)
        return self.read_tokenizer()

    def read_tokenizer(self) -> Tokenizer:
        """Reads the finished tokenizer, frozen, in eval mode, on the CPU; raises CheckpointError if it is damaged."""
        description, weights = self.describe_tokenizer(), self.tokenizer / "tokenizer.safetensors"
        if hashlib.sha256(weights.read_bytes()).hexdigest() != description["sha256"]:
            raise CheckpointError(
                f"{weights} is damaged: its checksum is not the one in tokenizer.json; delete its folder."
            )
        tokenizer = Tokenizer(from_dict(TokenizerConfig, description["config"]))
        tokenizer.load_state_dict(load_file(weights))
        return tokenizer.eval().requires_grad_(False)

    def describe_tokenizer(self) -> dict[str, Any]:
        """Returns what tokenizer.json says: config, checksum, data set and, if it was taken from there, its origin."""
        return json.loads((self.tokenizer / "tokenizer.json").read_text())

    def _check_tokenizer(self, config: TokenizerConfig, manifest_hash: str) -> None:
        """Checks that tokenizer.json is of this config and data set."""
        description = self.describe_tokenizer()
        there = from_dict(TokenizerConfig, description["config"])  # today's defaults for settings it does not know
        changes = differences(dataclasses.asdict(there), dataclasses.asdict(config), "tokenizer.")
        if changes:
            raise CheckpointError(
                f"The tokenizer in {self.tokenizer} has other settings: {'; '.join(changes)}; choose another --out, or "
                "use its settings."
            )
        if description["manifest_hash"] != manifest_hash:
            verb = "taken for" if "taken_from" in description else "trained on"
            raise CheckpointError(
                f"The tokenizer in {self.tokenizer} was {verb} another data set (manifest "
                f"{description['manifest_hash'][:12]}, now {manifest_hash[:12]}); choose another --out, or the "
                f"data it was {verb}."
            )

    def save_median_frame(self, frame: Tensor) -> None:
        """Writes the median training frame, uint8 [H, W, 3]."""
        storage.write_bytes(str(self.median_frame), save({"median_frame": frame.contiguous()}))

    def load_median_frame(self) -> Tensor:
        """Reads the median training frame, uint8 [H, W, 3]."""
        return load_file(self.median_frame)["median_frame"].to(torch.uint8)


def _is_tokenizer_of(place: str, description: dict[str, Any]) -> bool:
    """Whether the run directory `place` holds the tokenizer that is described: it may have moved since."""
    other = RunDirectory(Path(place))
    return bool(place) and other.has_tokenizer and other.describe_tokenizer()["sha256"] == description["sha256"]


def check_same_tokenizer(found: TrainedTokenizer, config: TokenizerConfig) -> None:
    """Raises ConfigError, naming the settings that differ, unless the tokenizer found is of this config."""
    changes = differences(dataclasses.asdict(found.tokenizer.config), dataclasses.asdict(config), "tokenizer.")
    if changes:
        raise ConfigError(
            f"The tokenizer in {found.place} has other settings than this run: {'; '.join(changes)}; use its settings, "
            f"or another tokenizer."
        )
