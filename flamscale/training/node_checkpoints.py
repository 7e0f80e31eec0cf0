"""Checkpoints of a run whose nodes share no disk: each node's part in; whole checkpoints, in an object store, out.

Every node writes its processes' part to its own disk and uploads it behind training: the files first, then a receipt of
each process with their hashes. Rank 0 waits in the store for the receipts of all processes, copies the records, and
uploads meta.json, which commits the checkpoint. So what has a meta.json is whole, and enough to go on from on any
nodes; a checkpoint of which a lost node had not uploaded its part is never committed, and removed at the next start.
A part stays on its node until it is uploaded, for as long as the store is away.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamscale.data import storage
from flamscale.errors import DataError
from flamscale.training.checkpoint import CheckpointStore, Resumed
from flamscale.training.engine import Engine
from flamscale.training.mirror import Job, Mirror
from flamscale.training.receipts import is_receipt, merge_receipts, receipt
from flamscale.training.retention import META, Retention, folder_name, step_of

_POLL_S = 1.0  # from one look for the others' receipts to the next


@dataclass(frozen=True)
class _Part(Job):
    """A node's part of a checkpoint."""

    meta: dict[str, Any] | None = None
    """Description of the whole checkpoint; rank 0 alone has it."""


class NodeMirror(Mirror):
    """What one node adds to the copy of a run; one process of each node has one."""

    def send_part(self, path: Path, retention: Retention, meta: dict[str, Any] | None) -> None:
        """Uploads this node's part of a checkpoint and deletes it here; commits the checkpoint if `meta` is given.

        Args:
            path: the folder `step-*.partial` with the part.
            retention: what is kept of the checkpoints in the store.
            meta: description of the checkpoint, without its files, on rank 0.
        """
        self._add([_Part(path, retention, meta)])

    def remove_uncommitted(self, folder: str, files: set[str]) -> None:
        """Deletes from the copy what is left of checkpoints that were never committed.

        Args:
            folder: path of the checkpoints in the copy.
            files: of the copy.
        """
        names = {file.removeprefix(f"{folder}/").partition("/")[0] for file in files if file.startswith(f"{folder}/")}
        for name in sorted(names):
            if step_of(name) is not None and f"{folder}/{name}/{META}" not in files:
                storage.remove_folder(storage.join(self.url, folder, name))

    def _copy(self, job: Job) -> None:
        if not isinstance(job, _Part):
            super()._copy(job)
            return
        url = self._url(job.path.with_suffix(""))
        names = sorted(path.relative_to(job.path).as_posix() for path in job.path.rglob("*") if path.is_file())
        for name in sorted(names, key=is_receipt):  # a receipt stands for files that are there
            storage.upload(str(job.path / name), storage.join(url, name), self._cancel)
        if job.meta is not None:
            self._commit(url, job.meta)
            assert job.retention is not None
            self._drop_old(job.path.parent, job.retention, rests=False)  # other nodes may be at the next one's parts
        shutil.rmtree(job.path)

    def _commit(self, url: str, meta: dict[str, Any]) -> None:
        receipts = [receipt(rank) for rank in range(meta["world_size"])]
        while not storage.find(url).issuperset(receipts):
            if self._cancel.wait(_POLL_S):
                raise DataError(f"Other nodes have not uploaded their parts of {url}.")
        files = merge_receipts(storage.read_bytes(storage.join(url, name)) for name in receipts)
        for job in self._along:  # or a run that goes on from here would lack the records of its last steps
            super()._copy(job)
        content = json.dumps(meta | {"files": files}, indent=1)
        storage.write_bytes(storage.join(url, META), content.encode())

    def _put_back(self, job: Job) -> None:
        self._waiting.appendleft(job)  # all nodes have the same order, so that nobody waits for a part that is dropped


class NodeCheckpoints(CheckpointStore):
    """The checkpoints of one stage in an object store; their parts lie in a folder on each node until uploaded.

    Args:
        folder: holds the parts; each node has its own.
        keep: newest checkpoints to keep (count).
        keep_every: those at multiples of this many steps are kept for good (count); 0 for none.
        parts: uploads what the node has, on one process of each node, rank 0 among them.
        local_rank: this process among those of its node.
        local_world_size: processes of its node (count).
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int = 0,
        *,
        parts: NodeMirror | None,
        local_rank: int,
        local_world_size: int,
    ) -> None:
        super().__init__(folder, keep, keep_every)
        self._parts = parts
        self._local_rank, self._local_world_size = local_rank, local_world_size

    def load(self, engine: Engine, loader_state: Any, extra: Mapping[str, Any]) -> Resumed | None:
        resumed = super().load(engine, loader_state, extra)
        engine.barrier()
        self._clear()
        return resumed

    def _makes_folders(self, engine: Engine) -> bool:
        return self._parts is not None

    def _share(self, names: Iterable[str], engine: Engine) -> list[str]:
        return sorted(names)[self._local_rank :: self._local_world_size]

    def _finish(self, partial: Path, final: Path, meta: dict[str, Any], engine: Engine) -> None:
        if self._parts is not None:
            self._parts.send_part(partial, self.retention, meta if engine.rank == 0 else None)

    def _find(self, engine: Engine) -> Path | None:
        """Brings the newest checkpoint of the store to every node, once all that was saved before is in the store."""
        if self._parts is not None:
            self._parts.wait()
        engine.barrier()
        found = self._newest() if engine.rank == 0 else None
        number = 0.0 if found is None else 1.0 + found
        step = round(engine.mean({"number": number})["number"] * engine.world_size) - 1
        if step < 0:
            return None
        path = self.folder / folder_name(step)
        if self._parts is not None:
            self._clear()
            self._parts.fetch(path.relative_to(self._parts.root).as_posix(), self._parts.files())
        engine.barrier()
        return path

    def _newest(self) -> int | None:
        """Returns the step of the newest checkpoint in the store, which it rids of all that is none."""
        assert self._parts is not None
        files, folder = self._parts.files(), self.folder.relative_to(self._parts.root).as_posix()
        self._parts.remove_uncommitted(folder, files)
        return self._parts.newest_checkpoint(folder, files)

    def _clear(self) -> None:
        if self._parts is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
