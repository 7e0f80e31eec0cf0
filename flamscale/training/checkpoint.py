"""Checkpoints: engine, data position and random state in, a committed folder out, and back.

Every process writes its part into `step-000123.partial/`; then meta.json, with the hash of every file, is written and
one rename to `step-000123/` commits it. What is not committed is never loaded, and removed at the next start.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from flamscale.errors import CheckpointError
from flamscale.training.engine import Engine
from flamscale.training.engine_state import read_module
from flamscale.training.mirror import Mirror
from flamscale.training.receipts import hash_file, is_receipt, merge_receipts, receipt, write_json
from flamscale.training.retention import META, Retention, delete, folder_name, step_of


@dataclasses.dataclass(frozen=True)
class Resumed:
    """Where a checkpoint left off: steps done (count), and the states of the loader and of the batch filter."""

    step: int
    loader_state: Any
    filter_state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one stage in one folder.

    Args:
        folder: Holds the `step-*` folders; on storage that all processes share.
        keep: Newest checkpoints to keep (count).
        keep_every: Those at multiples of this many steps are kept for good (count); 0 for none.
        mirror: Copies them to an object store, on the process that has it.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, mirror: Mirror | None = None) -> None:
        self.folder = Path(folder)
        self.retention = Retention(newest=keep, every=keep_every)
        self.mirror = mirror

    def latest(self) -> Path | None:
        """Returns the newest committed checkpoint, None where there is none."""
        committed = self._committed()
        return committed[max(committed)] if committed else None

    def copy_latest(self) -> None:
        """Has the mirror copy the newest checkpoint, where it has not yet."""
        if self.mirror is None:
            return
        self._remove_uncommitted()
        latest = self.latest()
        if latest is not None:
            self.mirror.send_checkpoint(latest, self.retention)

    def save(
        self,
        step: int,
        engine: Engine,
        loader_state: Any,
        extra: Mapping[str, Any],
        filter_state: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes and commits the checkpoint of `step`, then drops old ones; all processes must call it.

        Args:
            step: Optimiser steps done (count).
            engine: Writes model and optimiser.
            loader_state: The loader's state, a dataclass of a few values, one of them `manifest_hash`.
            extra: Settings of this run that a resumed one must share; JSON values.
            filter_state: State of the `BatchFilter`, if there is one.
        """
        final = self.folder / folder_name(step)
        partial = final.with_suffix(".partial")
        meta = self._describe(engine, extra) | {
            "step": step,
            "world_size": engine.world_size,
            "loader_state": dataclasses.asdict(loader_state),
            "filter_state": filter_state or {},
            "versions": _versions(),
        }
        with _named_failure(final):
            if self._makes_folders(engine):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            engine.barrier()
            engine.save(partial)
            (partial / f"random-{engine.rank:05d}.safetensors").write_bytes(save(_random_state(engine.device)))
            engine.barrier()
            written = [path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()]
            names = self._share((name for name in written if not is_receipt(name)), engine)
            write_json(partial / receipt(engine.rank), {name: hash_file(partial / name) for name in names})
            engine.barrier()
            self._finish(partial, final, meta, engine)
        engine.barrier()

    def load(self, engine: Engine, loader_state: Any, extra: Mapping[str, Any]) -> Resumed | None:
        """Restores the newest committed checkpoint; all processes must call it.

        Args:
            engine: Freshly built from the same config; takes model and optimiser.
            loader_state: The loader's present state; the checkpoint's must be of the same data.
            extra: As given to `save`.

        Returns:
            Where to go on, or None where no checkpoint is committed.

        Raises:
            CheckpointError: The checkpoint is damaged, or of another model or data set.
        """
        path = self._find(engine)
        if path is None:
            return None
        meta = read_meta(path)
        self._check_same(path, meta, engine, loader_state, extra)
        self._check_files(path, meta["files"], engine)
        engine.load(path)
        if meta["world_size"] == engine.world_size:  # else each process keeps the state its seed and rank gave it
            _set_random_state(load_file(path / f"random-{engine.rank:05d}.safetensors"), engine.device)
        state = dataclasses.replace(loader_state, **meta["loader_state"])
        return Resumed(meta["step"], state, meta.get("filter_state", {}))

    def _makes_folders(self, engine: Engine) -> bool:
        """Whether this process makes the folder that it and others write their parts into."""
        return engine.rank == 0

    def _share(self, names: Iterable[str], engine: Engine) -> list[str]:
        """Returns this process's share of a checkpoint's files, for hashing."""
        return sorted(names)[engine.rank :: engine.world_size]

    def _finish(self, partial: Path, final: Path, meta: dict[str, Any], engine: Engine) -> None:
        """Commits what all processes have written, and drops old checkpoints."""
        if engine.rank != 0:
            return
        receipts = sorted(path for path in partial.iterdir() if is_receipt(path.name))
        files = merge_receipts(path.read_bytes() for path in receipts)
        for path in receipts:
            path.unlink()
        write_json(partial / META, meta | {"files": files})
        self._commit(partial, final)
        self._drop_old()

    def _find(self, engine: Engine) -> Path | None:
        """Returns the newest committed checkpoint, the same for all processes."""
        if engine.rank == 0:
            self._remove_uncommitted()
        engine.barrier()
        path = self.latest()
        self._check_shared(path, engine)
        return path

    def _describe(self, engine: Engine, extra: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "parameters": _parameter_summary(engine.module),
            "settings": _flatten(extra),
        }

    def _check_same(
        self, path: Path, meta: dict[str, Any], engine: Engine, loader_state: Any, extra: Mapping[str, Any]
    ) -> None:
        here = self._describe(engine, extra)
        for name in sorted(here["settings"].keys() | meta["settings"].keys()):
            expected, found = here["settings"].get(name), meta["settings"].get(name)
            if expected != found:
                raise CheckpointError(
                    f"Expected a checkpoint with {name} = {expected}, found {found} in {path}; go on with the settings "
                    "it was made with, or choose another output directory."
                )
        if here["parameters"] != meta["parameters"]:
            raise CheckpointError(
                f"Expected a checkpoint of this model ({here['parameters']}), found another one's "
                f"({meta['parameters']}) in {path}; go on with that model, or choose another output directory."
            )
        expected, found = loader_state.manifest_hash, meta["loader_state"]["manifest_hash"]
        if expected != found:
            raise CheckpointError(
                f"Expected a checkpoint of the data set with manifest hash {expected[:12]}, found one of {found[:12]} "
                f"in {path}; go on with the data it was made with, or choose another output directory."
            )

    def _check_shared(self, path: Path | None, engine: Engine) -> None:
        step = float(step_of(path.name) or 0) if path else -1.0
        mean = engine.mean({"step": step})["step"]
        if engine.mean({"distance": abs(step - mean)})["distance"] > 0:
            raise CheckpointError(
                f"Expected all workers to see the same checkpoints in {self.folder}, found "
                f"{path.name if path else 'none'} on worker {engine.rank} and others elsewhere; put the output "
                "directory on storage that all nodes share."
            )

    def _check_files(self, folder: Path, hashes: Mapping[str, str], engine: Engine) -> None:
        """Raises CheckpointError on every process if any file is not the one that was committed."""
        share = self._share(hashes, engine)
        damaged = [name for name in share if not (folder / name).is_file() or hash_file(folder / name) != hashes[name]]
        if engine.mean({"damaged": float(len(damaged))})["damaged"] > 0:
            raise CheckpointError(
                f"Expected the files of {folder} as they were committed, found {damaged[0] if damaged else 'one'} "
                "missing or changed; delete that folder to go on from the checkpoint before it."
            )

    def _committed(self) -> dict[int, Path]:
        replaced = {step_of(path.stem): path for path in self.folder.glob("step-*.replaced")}
        found = replaced | {step_of(path.name): path for path in self.folder.glob("step-*")}
        return {step: path for step, path in found.items() if step is not None}

    def _remove_uncommitted(self) -> None:
        for path in self._committed().values():
            if path.suffix == ".replaced":  # a kill came before the other one took its place
                path.rename(path.with_suffix(""))
        for path in [*self.folder.glob("step-*.partial"), *self.folder.glob("step-*.replaced")]:
            shutil.rmtree(path)

    def _commit(self, partial: Path, final: Path) -> None:
        """Makes the checkpoint exist, at once; one of the same step counts until then."""
        replaced = final.with_suffix(".replaced")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        if self.mirror is not None:
            self.mirror.send_checkpoint(final, self.retention)

    def _drop_old(self) -> None:
        committed = self._committed()
        for step in self.retention.drops(committed):
            (self.mirror.delete if self.mirror else delete)(committed[step])


def _parameter_summary(module: torch.nn.Module) -> str:
    """Names the model by its parameters; ZeRO-3 keeps their true shapes in `ds_shape`."""
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in module.named_parameters()}
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    digest = hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()
    return f"{count} parameters in {len(shapes)} tensors, shapes {digest[:8]}"


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"flam.num_slots": 4}, with JSON's types."""
    if not isinstance(settings, Mapping):
        return {prefix: json.loads(json.dumps(settings))}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def _versions() -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    with suppress(metadata.PackageNotFoundError):  # Ray runs the uploaded sources, not an installed package
        versions["flamscale"] = metadata.version("flamscale")
    return versions


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the description of the committed checkpoint at `path`; raises CheckpointError if it is damaged."""
    try:
        return json.loads((path / META).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"Expected a readable meta.json in {path}, found {error}; delete that folder to go on from the checkpoint "
            "before it."
        ) from error


def read_objective(path: Path) -> dict[str, torch.Tensor]:
    """Returns the state dict of the objective in the committed checkpoint at `path`, on the CPU.

    Raises:
        CheckpointError: it is damaged, or no checkpoint.
    """
    for name, expected in read_meta(path)["files"].items():
        if not (path / name).is_file() or hash_file(path / name) != expected:
            raise CheckpointError(f"Expected {path / name} as it was committed, found it missing or changed.")
    return read_module(path)


@contextmanager
def _named_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"Expected to write checkpoint {path}, found {error.strerror or error}; free some space or permit writing, "
            "or choose another output directory."
        ) from error
