"""`serve` answers over real sockets as the run does, survives its workers, and names faults."""

import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import processes
import proj
from conftest import Cli
from engine.deployment.conftest import BUNDLE, RUN

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


class Client:
    """Sends requests to a server, each over a connection of its own unless they are kept."""

    def __init__(self, port: int, process: processes.Process) -> None:
        self.port, self.process = port, process

    def ask(
        self, body: bytes | None = None, kind: str = JSON, path: str = "/predict", **headers: str
    ) -> tuple[int, Any]:
        """Return the status and the answer, decoded if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        all_headers = {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request("GET" if body is None else "POST", path, body, all_headers)
        response = connection.getresponse()
        content: Any = response.read()
        if response.headers["Content-Type"] == JSON:
            content = json.loads(content)
        connection.close()
        return response.status, content

    def rows(self, rows: Any) -> tuple[int, Any]:
        """Send rows as JSON."""
        return self.ask(json.dumps({"rows": rows}).encode())


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Start a server of the bundle; it is ended after the test."""
    started = []

    def start(*options: Any, bundle: Path = BUNDLE, **env: str) -> Client:
        with Path("server.log").open("w") as log:
            arguments = ["serve", bundle, "--port", "0", *options]
            process = processes.Process(
                "proj", *arguments, stdout=log, stderr=log, env={**os.environ, **env}
            )
        started.append(process)
        end = time.monotonic() + 60
        while "serving on" not in (text := Path("server.log").read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.02)
        client = Client(int(text.partition("127.0.0.1:")[2].split()[0]), process)
        while client.ask(path="/ready")[0] != 200:
            assert time.monotonic() < end, Path("server.log").read_text()
            time.sleep(0.02)
        return client

    yield start
    for process in started:
        process.kill()
        process.wait()


def workers_of(client: Client) -> list[int]:
    path = Path(f"/proc/{client.process.pid}/task/{client.process.pid}/children")
    return list(map(int, path.read_text().split()))


def readable_rows() -> pl.DataFrame:
    """Rows of the table that can be read, as text."""
    rows = pl.read_csv("table.csv", infer_schema=False)
    return rows.filter(pl.col("amount") != "oops").head(40)


def check(answers: list[dict[str, Any]], expected: pl.DataFrame) -> None:
    """Answers equal those of the loaded model."""
    got, expected = pl.DataFrame(answers), expected.drop("row", strict=False)
    assert got.columns == expected.columns
    for name in got.columns:
        if got[name].dtype.is_float():
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert got[name].to_list() == expected[name].to_list()


@pytest.mark.usefixtures("table_bundle")
def test_a_table_in_each_form(serve: Callable[..., Client]) -> None:
    """JSON, CSV and Parquet give the answers of the run; so does a request without rows."""
    client, rows = serve(), readable_rows()
    expected = proj.load(RUN).predict(rows)
    file = io.BytesIO()
    rows.write_parquet(file)
    bodies = {
        JSON: json.dumps({"rows": rows.to_dicts()}).encode(),
        JSON + "; charset=utf-8": json.dumps(rows.to_dicts()).encode(),
        CSV: rows.write_csv().encode(),
        PARQUET: file.getvalue(),
    }
    for kind, body in bodies.items():
        status, content = client.ask(body, kind)
        assert status == 200, content
        check(content["predictions"], expected)
    assert client.rows([]) == (200, {"predictions": []})


@pytest.mark.usefixtures("table_bundle")
def test_faults_are_named_with_row_and_column(serve: Callable[..., Client]) -> None:
    """Each value that cannot be read is one entry; bodies of other kinds have other statuses."""
    client = serve("--max_rows", 50, "--max_body_mb", 1)
    good = readable_rows().to_dicts()[0]
    wrong = {**good, "tenure": "many", "since": "yesterday"}
    lacking = {name: value for name, value in good.items() if name != "plan"}
    status, content = client.rows([good, wrong, lacking, {**good, "tenure": [1]}, 7])
    assert status == 422
    places = [(fault["loc"], fault["msg"]) for fault in content["detail"]]
    assert [place for place, _ in places] == [
        ["body", "rows", 1, "tenure"],
        ["body", "rows", 1, "since"],
        ["body", "rows", 2, "plan"],
        ["body", "rows", 3, "tenure"],
        ["body", "rows", 4],
    ]
    assert "expected a number, got 'many'" in places[0][1]
    # Without a row that lacks a column, values are read column by column.
    status, content = client.rows([good, wrong, {**wrong, "tenure": 10**400}])
    assert status == 422
    assert [(f["loc"][2:], f["msg"][:17]) for f in content["detail"]] == [
        ([1, "tenure"], "expected a number"),
        ([2, "tenure"], "expected a value "),
        ([1, "since"], "expected a date, "),
        ([2, "since"], "expected a date, "),
    ]
    for body, kind, expected in (
        (b"{", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"rows": 1}', JSON, 422),
        (b"\xff", CSV, 400),
        (b"tenure,tenure\n1,2\n", CSV, 400),
        (b"tenure\n1,2\n", CSV, 422),
        (b"", CSV, 400),
        (b"PAR1", PARQUET, 400),
        (b"x", "application/octet-stream", 415),
        (b"x", "text/plain", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 422),
        (b"x", "multipart/form-data", 400),
        (b"[" + b"1," * 600_000 + b"1]", JSON, 413),
        (json.dumps([good] * 51).encode(), JSON, 413),
    ):
        status, content = client.ask(body, kind)
        assert status == expected, (body[:20], kind, content)
        assert content["detail"][0]["msg"]
    assert client.rows([good])[0] == 200


@pytest.mark.usefixtures("table_bundle")
def test_the_description_has_an_example_that_works(serve: Callable[..., Client]) -> None:
    """OpenAPI names the columns, and its examples are answered as they are."""
    client = serve(SERVE_API_KEY="secret")
    document = client.ask(path="/openapi.json")[1]
    operation = document["paths"]["/predict"]["post"]
    columns = client.ask(path="/schema")[1]["columns"]
    content = operation["requestBody"]["content"]
    properties = content[JSON]["schema"]["properties"]["rows"]["items"]["properties"]
    assert [column["name"] for column in columns] == list(properties)
    assert "tenure" in properties
    body = json.dumps(content[JSON]["example"]).encode()
    assert client.ask(body)[0] == 401
    assert client.ask(body, X_API_Key="secreT")[0] == 401
    status, answer = client.ask(body, X_API_Key="secret")
    assert status == 200
    fields = operation["responses"]["200"]["content"][JSON]["schema"]["properties"]["predictions"]
    assert list(fields["items"]["properties"]) == list(answer["predictions"][0])
    assert client.ask(content[CSV]["example"].encode(), CSV, X_API_Key="secret")[0] == 200
    assert client.ask(path="/metrics")[0] == 401
    metrics = client.ask(path="/metrics", X_API_Key="secret")[1].decode()
    assert 'predict_requests_total{status="200"} 2.0' in metrics
    assert 'predict_requests_total{status="401"} 2.0' in metrics
    assert client.ask(path="/health") == (200, {"status": "ok"})


@pytest.mark.usefixtures("image_bundle")
def test_images_in_each_form(serve: Callable[..., Client]) -> None:
    """Files of a form, a single file and base64 give the answers of the run."""
    client = serve()
    files = sorted(Path("images").rglob("*.*"))[:8]
    expected = proj.load(RUN).predict(files)
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        + file.read_bytes()
        + b"\r\n"
        for file in files
    )
    status, content = client.ask(parts + b"--x--\r\n", "multipart/form-data; boundary=x")
    assert status == 200, content
    check(content["predictions"], expected)
    single = client.ask(files[0].read_bytes(), "image/gif")[1]["predictions"]
    check(single, expected.head(1))
    assert client.ask(files[0].read_bytes(), "application/octet-stream")[1]["predictions"] == single
    # The name of a file of the server is not read as one.
    status, content = client.rows([str(files[0].absolute())])
    assert (status, content["detail"][0]["loc"]) == (422, ["body", "rows", 0])
    status, content = client.ask(b"no image", "image/png")
    assert (status, content["detail"][0]["loc"]) == (422, ["body", "rows", 0])
    document = client.ask(path="/openapi.json")[1]
    example = document["paths"]["/predict"]["post"]["requestBody"]["content"][JSON]["example"]
    assert client.ask(json.dumps(example).encode())[0] == 200


@pytest.mark.usefixtures("image_bundle")
def test_an_image_of_too_many_pixels_is_refused(serve: Callable[..., Client]) -> None:
    """A file of a few kilobytes may hold gigabytes of pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    status, content = serve().ask(file.getvalue(), "image/png")
    assert status == 422
    assert "pixels" in content["detail"][0]["msg"]


@pytest.mark.long
@pytest.mark.usefixtures("table_bundle")
def test_no_request_is_lost_while_workers_are_killed(serve: Callable[..., Client]) -> None:
    """Requests of a killed worker are answered by another one."""
    client, rows = serve("--workers", 2), readable_rows()
    expected = client.rows(rows.to_dicts())[1]
    body = json.dumps({"rows": rows.to_dicts()}).encode()
    wrong: list[Any] = []
    ends = threading.Event()
    sent = [0] * 4

    def send(number: int) -> None:
        while not ends.is_set():
            answer = client.ask(body)
            sent[number] += 1
            if answer != (200, expected):
                wrong.append(answer)

    senders = [threading.Thread(target=send, args=[number]) for number in range(4)]
    for sender in senders:
        sender.start()
    for kill in range(6):
        time.sleep(0.1)
        for worker in workers_of(client)[kill % 2 :][:1]:
            os.kill(worker, signal.SIGKILL)
    ends.set()
    for sender in senders:
        sender.join()
    assert min(sent) > 3
    assert not wrong, wrong[:3]
    metrics = client.ask(path="/metrics")[1].decode()
    restarts = next(x for x in metrics.splitlines() if x.startswith("worker_restarts "))
    assert float(restarts.split()[1]) >= 3


@pytest.mark.usefixtures("table_bundle")
def test_sigterm_answers_what_has_been_sent(serve: Callable[..., Client]) -> None:
    """Requests on their way are answered, connections are told to close, and the exit code is 0."""
    client, rows = serve(), readable_rows().to_dicts()
    body = json.dumps({"rows": rows * 100}).encode()
    kept = http.client.HTTPConnection("127.0.0.1", client.port)
    kept.request("GET", "/health")
    kept.getresponse().read()
    answers: list[Any] = []
    sender = threading.Thread(target=lambda: answers.append(client.ask(body)))
    sender.start()
    while not workers_of(client) or b"requests" not in client.ask(path="/metrics")[1]:
        time.sleep(0.01)
    time.sleep(0.05)
    client.process.terminate()
    time.sleep(0.1)
    kept.request("GET", "/ready")
    response = kept.getresponse()
    assert (response.status, response.headers["Connection"]) == (503, "close")
    sender.join()
    assert answers[0][0] == 200
    assert len(answers[0][1]["predictions"]) == 4000
    assert client.process.wait(20) == 0
    with (
        pytest.raises(ConnectionRefusedError),
        socket.create_connection(("127.0.0.1", client.port)),
    ):
        pass


@pytest.mark.usefixtures("table_bundle")
def test_a_client_that_goes_away(serve: Callable[..., Client]) -> None:
    """A body that is cut off is no error of the server."""
    client = serve()
    for kind in (JSON, "multipart/form-data; boundary=x"):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n[".encode())
            time.sleep(0.1)
    end = time.monotonic() + 20
    while b'predict_requests_total{status="400"} 2.0' not in client.ask(path="/metrics")[1]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "Traceback" not in Path("server.log").read_text()


def test_what_cannot_be_served(cli: Cli, tmp_path: Path) -> None:
    """A folder without a bundle is one message."""
    assert "expected a bundle of `export`" in cli("serve", tmp_path, code=2)
    assert "expected one argument" in cli("serve", tmp_path, "--port", code=2)


@pytest.mark.usefixtures("table_bundle")
def test_settings_that_cannot_be_used(cli: Cli) -> None:
    """A server without workers would answer nothing."""
    for name, value in (("workers", 0), ("port", 70_000), ("max_rows", 0), ("max_body_mb", -1)):
        assert f"--{name}: expected " in cli("serve", BUNDLE, f"--{name}", value, code=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"got --port {port}" in cli("serve", BUNDLE, "--port", port, code=2)
