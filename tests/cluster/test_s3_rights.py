"""The policy that the note on keys offers: enough for what training does with a store, and for nothing else."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs
from moto.core import enable_iam_authentication
from moto.server import ThreadedMotoServer

from flamscale.data import storage
from flamscale.errors import DataError

NOTE = (Path(__file__).parents[2] / "cluster" / "S3.md").read_text()
POLICY = json.loads(re.findall(r"```json\n(.*?)```", NOTE, re.DOTALL)[0])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store with one shard that checks rights, opened with keys that have the note's policy."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    session = boto3.Session(aws_access_key_id="root", aws_secret_access_key="root")
    session.client("s3").create_bucket(Bucket="bucket")
    session.client("s3").put_object(Bucket="bucket", Key="videos/shard.tar", Body=b"shard")
    iam = session.client("iam")
    iam.create_user(UserName="trainer")
    iam.put_user_policy(UserName="trainer", PolicyName="flamscale", PolicyDocument=json.dumps(POLICY))
    keys = iam.create_access_key(UserName="trainer")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    s3fs.S3FileSystem.clear_instance_cache()
    with enable_iam_authentication():
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", b"").close()  # what it holds outlives it
    server.stop()


def test_it_is_enough_to_find_and_read_shards_and_to_keep_checkpoints(store):
    files, folder = storage.locate(f"{store}/videos")
    assert files.find(folder) == ["bucket/videos/shard.tar"]
    assert storage.read_range(f"{store}/videos/shard.tar", 1, 3) == b"har"
    storage.check_writable(f"{store}/checkpoints/run")
    storage.write_bytes(f"{store}/checkpoints/run/step", b"weights")
    assert storage.read_bytes(f"{store}/checkpoints/run/step") == b"weights"
    storage.remove(f"{store}/checkpoints/run/step")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{store}/checkpoints/run/step")


def test_it_lets_nobody_change_the_shards_or_read_other_folders(store):
    with pytest.raises(DataError, match="permission denied"):
        storage.write_bytes(f"{store}/videos/shard.tar", b"other")
    with pytest.raises(DataError, match="permission denied"):
        storage.remove(f"{store}/videos/shard.tar")
    with pytest.raises(DataError, match="permission denied"):
        storage.read_bytes(f"{store}/private/file")


def test_it_grants_no_more_than_that():
    granted = {statement["Sid"]: statement for statement in POLICY["Statement"]}
    actions = {name: statement["Action"] for name, statement in granted.items()}
    assert actions == {
        "FindFiles": "s3:ListBucket",
        "ReadShards": "s3:GetObject",
        "KeepCheckpoints": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
    }
    assert all(statement["Effect"] == "Allow" for statement in granted.values())
    assert granted["ReadShards"]["Resource"] == "arn:aws:s3:::bucket/videos/*"
    assert granted["KeepCheckpoints"]["Resource"] == "arn:aws:s3:::bucket/checkpoints/*"
