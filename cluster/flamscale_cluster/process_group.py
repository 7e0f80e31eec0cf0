"""How the workers of a Ray Train run form one torch.distributed group: Ray's way, unless all are on loopback.

In: a started worker group; out: torch.distributed is initialised in each worker. Ray's way opens a TCPStore that
listens on all interfaces and asks nobody for a password. Workers on loopback share a machine, so that a file which only
its user can open serves them as the store, and gloo and NCCL are told to stay on the loopback interface.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.util
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig


class ProcessGroupConfig(TorchConfig):
    """Ray's TorchConfig, but nothing listens beyond loopback where all workers are on it."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _LoopbackBackend


class _LoopbackBackend(Backend):
    """Lives in the controller of the run, which on loopback shares the workers' machine."""

    share_cuda_visible_devices = True  # as in Ray's backend

    def __init__(self) -> None:
        self._ray = TorchConfig().backend_cls()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        addresses = worker_group.execute(ray.util.get_node_ip_address)
        if not all(address.startswith("127.") for address in addresses):
            self._ray.on_start(worker_group, backend_config)
            return
        session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]  # Ray's own folder: goes with a local head
        self._folder = tempfile.TemporaryDirectory(dir=session, ignore_cleanup_errors=True)  # a new one for each group
        store = f"{self._folder.name}/store"
        world_size = len(addresses)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join_on_loopback, backend_config.backend, store, rank, world_size
                )
                for rank in range(world_size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            self._ray.on_shutdown(worker_group, backend_config)
        finally:
            if self._folder is not None:
                self._folder.cleanup()


def join_on_loopback(backend: str, store: str, rank: int, world_size: int) -> None:
    """Joins the process group whose members meet in a file.

    Args:
        backend: gloo or nccl.
        store: the file's path, the same for all members, in a folder of theirs alone.
        rank: number of this process among them.
        world_size: how many they are.
    """
    interface = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(known.address == "127.0.0.1" for known in addresses)
    )
    os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}  # "=": no other lo*
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world_size)
