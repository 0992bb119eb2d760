"""Measure the server of bundles beside others with the same net: requests per second, latency.

usage: python scripts/bench_serve.py [--seconds 5] [--rounds 2] [--rivals PYTHON] [--soak N]

Trains and exports a table of 10 numbers and 5 categories with the default TabM, and images of
28 x 28 pixels with a small CNN. Starts each server in turn on 127.0.0.1, with one process that
predicts, and sends requests from 1, 8 and 64 connections, each of which waits for its answer before
it sends the next request. Servers and client share the cores.

PYTHON is the interpreter of an environment with litserve and bentoml beside NumPy, onnxruntime and
Pillow; without it they are left out. All of them call the same runtime of the same bundle, except
for the handler around ``load`` of this package, which is what people write first.

``--soak N`` sends N requests to this server alone while its workers are killed, and prints its
memory at the beginning and at the end.
"""

import argparse
import asyncio
import base64
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from PIL import Image
from rich.console import Console
from rich.table import Table

PACKAGE = next(path.parent.name for path in Path(__file__).parent.parent.glob("src/*/__main__.py"))
CONNECTIONS = (1, 8, 64)
NUMBERS, CATEGORIES = [f"n{i}" for i in range(10)], [f"c{i}" for i in range(5)]

# Programs of the other servers. BUNDLE and RUN are paths, PORT is a number.
OTHERS = {
    "FastAPI around load": """
        import PACKAGE, polars as pl, uvicorn
        from fastapi import FastAPI
        model, app = PACKAGE.load("RUN"), FastAPI()
        @app.post("/predict")
        def predict(body: dict) -> dict:
            return {"predictions": model.predict(pl.DataFrame(body["rows"])).to_dicts()}
        uvicorn.run(app, port=PORT, log_level="error")
    """,
    "FastAPI around the bundle": """
        import sys; sys.path.insert(0, "BUNDLE")
        import base64, uvicorn
        from fastapi import FastAPI
        from runtime import load
        model, app = load("BUNDLE"), FastAPI()
        @app.post("/predict")
        def predict(body: dict) -> dict:
            rows = body["rows"]
            if isinstance(rows[0], str):
                rows = [base64.b64decode(row) for row in rows]
            columns = {name: values.tolist() for name, values in model.predict(rows).items()}
            return {"predictions": [dict(zip(columns, row)) for row in zip(*columns.values())]}
        uvicorn.run(app, port=PORT, log_level="error")
    """,
    "LitServe": """
        import sys; sys.path.insert(0, "BUNDLE")
        import base64
        import litserve
        from runtime import load
        class Api(litserve.LitAPI):
            def setup(self, device):
                self.model = load("BUNDLE")
            def decode_request(self, request):
                rows = request["rows"]
                return [base64.b64decode(row) for row in rows] if isinstance(rows[0], str) else rows
            def predict(self, rows):
                return self.model.predict(rows)
            def encode_response(self, answers):
                columns = {name: values.tolist() for name, values in answers.items()}
                return {"predictions": [dict(zip(columns, row)) for row in zip(*columns.values())]}
        if __name__ == "__main__":
            server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
            server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="error")
    """,
    "BentoML": """
        import sys; sys.path.insert(0, "BUNDLE")
        import base64
        import bentoml
        from runtime import load
        @bentoml.service(workers=1)
        class Service:
            def __init__(self) -> None:
                self.model = load("BUNDLE")
            @bentoml.api
            def predict(self, rows: list) -> dict:
                if isinstance(rows[0], str):
                    rows = [base64.b64decode(row) for row in rows]
                columns = {n: values.tolist() for n, values in self.model.predict(rows).items()}
                return {"predictions": [dict(zip(columns, row)) for row in zip(*columns.values())]}
    """,
}
RIVALS = ("LitServe", "BentoML")
OURS = f"{PACKAGE} serve"


class Load(NamedTuple):
    """What a number of connections measured.

    Attributes:
        requests: answered requests per second.
        p50, p99: latency in milliseconds.
        failed: requests without an answer, or with another status than 200.
    """

    requests: float
    p50: float
    p99: float
    failed: int


class Client(asyncio.Protocol):
    """One connection: it sends the same request again and again."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self.request, self.latencies = request, latencies
        self.left = -1  # bytes of the answer that have not arrived; -1 before its header
        self.buffer = b""
        self.failed, self.stops = 0, False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self.start = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.left < 0:
            header, found, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if not found:
                self.buffer = header
                return
            lines = header.lower().split(b"\r\n")
            self.failed += b" 200 " not in lines[0] + b" "
            lengths = [int(x[15:]) for x in lines if x.startswith(b"content-length:")]
            self.left = lengths[0]
        if len(self.buffer) >= self.left:
            self.buffer, self.left = self.buffer[self.left :], -1
            self.latencies.append(time.perf_counter() - self.start)
            if self.stops:
                self.transport.close()
            else:
                self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self.failed += not self.stops
        if not self.ended.done():
            self.ended.set_result(None)


async def apply_load(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Send requests from several connections for some seconds."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    clients = [Client(request, latencies) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
    await asyncio.sleep(seconds / 5)  # until all have sent something
    latencies.clear()
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    count, duration = len(latencies), time.perf_counter() - start
    for client in clients:
        client.stops = True
    await asyncio.wait_for(asyncio.gather(*(client.ended for client in clients)), 60)
    ordered = np.sort(latencies[:count]) * 1000
    p50, p99 = np.quantile(ordered, [0.5, 0.99]) if count else (np.nan, np.nan)
    return Load(count / duration, p50, p99, sum(client.failed for client in clients))


def http_request(rows: list[object]) -> bytes:
    """Return a request with JSON rows, which keeps its connection."""
    body = json.dumps({"rows": rows}).encode()
    header = (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return header.encode() + body


# Servers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(
    name: str, data: str, rivals: str | None, request: bytes, *options: str
) -> Iterator[int]:
    """Run a server until the end of the block; yield its port."""
    port = free_port()
    bundle, run = Path(f"{data}_bundle").absolute(), Path(f"lightning_logs/{data}").absolute()
    if name == OURS:
        command = [sys.executable, "-m", PACKAGE, "serve", str(bundle), "--port", str(port)]
        command += options
    else:
        text = OTHERS[name]
        for word, value in (("BUNDLE", bundle), ("RUN", run), ("PORT", port), ("PACKAGE", PACKAGE)):
            text = text.replace(word, str(value))
        program = Path(f"{name.replace(' ', '_').lower()}_server.py")
        lines = text.splitlines()[1:]
        program.write_text("\n".join(line[8:] for line in lines), encoding="utf-8")
        python = rivals if name in RIVALS else sys.executable
        assert python is not None
        command = [python, str(program)]
        if name == "BentoML":
            service = [f"{program.stem}:Service", "--host", "127.0.0.1", "--port", str(port)]
            command = [python, "-m", "bentoml", "serve", *service]
    env = {**os.environ, "BENTOML_DO_NOT_TRACK": "True"}
    with Path("server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=env)
    Path("server.pid").write_text(str(process.pid), encoding="utf-8")
    try:
        wait_until_answered(process, port, request)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_answered(process: subprocess.Popen[bytes], port: int, request: bytes) -> None:
    body = request.partition(b"\r\n\r\n")[2]
    headers = {"Content-Type": "application/json"}
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            url = f"http://127.0.0.1:{port}/predict"
            urllib.request.urlopen(urllib.request.Request(url, body, headers)).read()
            return
        except OSError:  # URLError is one
            time.sleep(0.1)
    raise SystemExit(
        f"the server does not answer: {Path('server.log').read_text(encoding='utf-8')[-2000:]}"
    )


# Measurements

# Kills a child of a process every half second.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
while True:
    time.sleep(0.5)
    children = Path(f"/proc/{sys.argv[1]}/task/{sys.argv[1]}/children").read_text("utf-8").split()
    if children:
        os.kill(int(random.choice(children)), signal.SIGKILL)
"""


def prepare() -> dict[str, list[object]]:
    """Train and export both nets; return 100 rows of each kind of data."""
    rng = np.random.default_rng(0)
    table = {name: rng.normal(size=2000).round(3) for name in NUMBERS}
    table |= {name: rng.choice(["red", "green", "blue"], 2000) for name in CATEGORIES}
    frame = pl.DataFrame(table).with_columns(y=pl.Series(table["n0"] > 0).cast(pl.Int64))
    frame.write_csv("table.csv")
    for label in ("dark", "light"):
        Path("images", label).mkdir(parents=True)
        for i in range(100):
            pixels = rng.integers(0, 120, (28, 28, 3)) + (130 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(f"images/{label}/{i}.png")
    run = [sys.executable, "-m", PACKAGE]
    for data, source in (("table", ["table.csv", "--target", "y"]), ("images", ["images"])):
        epochs = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--name", data]
        for command in (
            ["init", *source, "--output", f"{data}.yaml"],
            ["fit", "--config", f"{data}.yaml", *epochs],
            ["test", "--run", data],
            ["export", "--run", data, "--output", f"{data}_bundle"],
        ):
            subprocess.run([*run, *command], check=True, capture_output=True)
    files = sorted(Path("images").rglob("*.png"))[:100]
    images: list[object] = [base64.b64encode(file.read_bytes()).decode() for file in files]
    return {"table": frame.drop("y").head(100).to_dicts(), "images": images}


def compare(seconds: float, rounds: int, rivals: str | None) -> None:
    """Print a table of all servers, in turns."""
    rows = prepare()
    names = [OURS, *(name for name in OTHERS if rivals or name not in RIVALS)]
    results: dict[tuple[str, int, int, str], list[Load]] = {}
    for _ in range(rounds):
        for data, all_rows in rows.items():
            for name in names:
                if data == "images" and name == "FastAPI around load":
                    continue  # It takes files, not their contents.
                with running(name, data, rivals, http_request(all_rows[:1])) as port:
                    for count in (1, 100):
                        request = http_request(all_rows[:count])
                        for connections in CONNECTIONS:
                            load = asyncio.run(apply_load(port, request, connections, seconds))
                            results.setdefault((data, count, connections, name), []).append(load)
    show(results)


def show(results: dict[tuple[str, int, int, str], list[Load]]) -> None:
    table = Table(
        "data", "rows", "connections", "server", "requests/s", "p50 ms", "p99 ms", "failed"
    )
    for (data, count, connections, name), loads in sorted(results.items()):
        middle = [statistics.median(values) for values in zip(*loads, strict=True)]
        speed, p50, p99 = f"{middle[0]:,.0f}", f"{middle[1]:.1f}", f"{middle[2]:.1f}"
        failed = str(sum(load.failed for load in loads))
        table.add_row(data, str(count), str(connections), name, speed, p50, p99, failed)
    Console(width=110).print(table)


def memory(group: int) -> float:
    """Return the memory of all processes of a session in megabytes."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getsid(int(status.parent.name)) == group:
                lines = status.read_text(encoding="utf-8").splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return total / 1024


async def send_all(port: int, request: bytes, count: int) -> int:
    """Send a number of requests from 16 connections; return how many failed."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    clients = [Client(request, latencies) for _ in range(16)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
    while len(latencies) < count:
        await asyncio.sleep(0.05)
    for client in clients:
        client.stops = True
    await asyncio.gather(*(client.ended for client in clients))
    return sum(client.failed for client in clients)


def soak(count: int) -> None:
    """Send many requests while workers are killed; print failures and memory."""
    request = http_request(prepare()["table"][:1])
    with running(OURS, "table", None, request, "--workers", "2") as port:
        server = int(Path("server.pid").read_text(encoding="utf-8"))
        asyncio.run(send_all(port, request, max(1000, count // 10)))
        before = memory(server)
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(server)])
        start = time.perf_counter()
        failed = asyncio.run(send_all(port, request, count))
        seconds = time.perf_counter() - start
        killer.terminate()
        killer.wait()
        time.sleep(5)
        asyncio.run(send_all(port, request, 1000))
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        restarts = next(x for x in metrics.splitlines() if x.startswith("worker_restarts"))
        print(f"{count:,} requests in {seconds:.0f} s, {failed} failed, {restarts}")
        print(f"memory of all processes: {before:.0f} MB before, {memory(server):.0f} MB after")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rivals", help="interpreter of an environment with litserve and bentoml")
    parser.add_argument("--soak", type=int, help="requests to this server, with killed workers")
    options = parser.parse_args()
    rivals = options.rivals and str(Path(options.rivals).absolute())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if options.soak:
            soak(options.soak)
        else:
            compare(options.seconds, options.rounds, rivals)
        os.chdir("/")


if __name__ == "__main__":
    main()
