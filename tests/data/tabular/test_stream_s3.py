"""Shards on a server that speaks S3: a local one of moto, over HTTP."""

import importlib.util
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from conftest import Cli
from data.tabular.test_stream import CONFIG, batches, row_numbers, stream, table, write
from processes import REAL_PYTHON
from proj.errors import UserError

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("moto") is None,
        reason="moto[server] is not installed: 300 MB, for these tests only",
    ),
]
# Moto checks no signatures. The header only says which service is meant.
HEADERS = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request",
    "Content-Type": "application/octet-stream",
}


def put(url: str, content: bytes = b"") -> None:
    request = urllib.request.Request(url, content, HEADERS, method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


@pytest.fixture
def bucket(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket with shards in ``shards/``, and credentials in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url, name = f"http://127.0.0.1:{port}", f"bucket-{os.getpid()}-{port}"
    server = subprocess.Popen(
        [REAL_PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(url, server)
        put(f"{url}/{name}")
        for file in sorted(write(table(), work / "local").iterdir()):
            put(f"{url}/{name}/shards/{file.name}", file.read_bytes())
        put(f"{url}/{name}/shards/_SUCCESS")
        settings = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }
        for variable, value in settings.items():
            monkeypatch.setenv(variable, value)
        yield f"s3://{name}"
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert server.poll() is None, "moto's server has ended"
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail("moto's server does not answer")


def test_shards_of_a_bucket(bucket: str, work: Path, cli: Cli) -> None:
    """The rows and their order are those of the same shards in a folder."""
    local = stream(work / "local")
    expected = row_numbers(batches(local.train_dataloader()))
    for path in (f"{bucket}/shards", f"{bucket}/shards/", f"{bucket}/shards/part-*.parquet"):
        remote = stream(path)
        assert row_numbers(batches(remote.train_dataloader())) == expected
    assert remote.schema == local.schema
    config = work / "stream.yaml"
    config.write_text(CONFIG.replace("path: shards", f"path: {bucket}/shards"))
    cli("fit", "--config", config, "--trainer.max_epochs", 1)
    cli("test", "--run", "version_0")
    tested = pl.read_parquet("lightning_logs/version_0/test/predictions.parquet")
    rows = row_numbers(batches(local.test_dataloader()))
    assert tested["row"].to_list() == rows
    for path, message in (("nothing", "got none"), ("../none", "that can be read")):
        with pytest.raises(UserError, match=message):
            stream(f"{bucket.replace('bucket', 'other') if '..' in path else bucket}/{path}")
