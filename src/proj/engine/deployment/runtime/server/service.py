"""Run the server: options, limits, and an end that loses no request."""

import argparse
import asyncio
import os
import socket
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import uvicorn

from ..predictor import load
from .app import build_app
from .pool import Pool

# The environment variable with the API key.
KEY_VARIABLE = "SERVE_API_KEY"
# Seconds that idle connections are kept after SIGTERM, so that a request which is on its way is
# answered; its answer tells the client to open no other one.
GRACE = 1.0
# The smallest and the largest value of each setting.
LIMITS = {
    "workers": (1, 64),
    "port": (0, 65_535),
    "max_rows": (1, None),
    "max_body_mb": (1, None),
}
# Connections that wait until they are accepted.
BACKLOG = 2048


class Settings(NamedTuple):
    """How to serve.

    Attributes:
        host: address to listen on.
        port: its port; 0 chooses a free one.
        workers: processes that predict.
        max_rows: rows of one request.
        max_body_mb: size of its body.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    max_rows: int = 10_000
    max_body_mb: int = 32


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings to a command line."""
    default = Settings()
    add = parser.add_argument
    add("--host", default=default.host, help="address to listen on; 0.0.0.0 for other machines")
    add("--port", type=int, default=default.port, help="port; 0 chooses a free one")
    add("--workers", type=int, default=default.workers, help="processes that predict")
    add("--max_rows", type=int, default=default.max_rows, help="rows of one request")
    add("--max_body_mb", type=int, default=default.max_body_mb, help="megabytes of one request")


class Closing:
    """The application, which tells clients to close their connections while the server ends."""

    def __init__(self, app: Any, pool: Pool) -> None:
        self.app, self.pool = app, pool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start" and self.pool.is_draining:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_last if scope["type"] == "http" else send)


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM first answers what is on its way."""

    def __init__(self, config: uvicorn.Config, pool: Pool) -> None:
        super().__init__(config)
        self.pool = pool

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for listener in self.servers:
            host, port, *_ = listener.sockets[0].getsockname()
            host = f"[{host}]" if ":" in host else host
            print(f"serving on http://{host}:{port} (page /, documentation /docs)", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop listening, let clients close their connections, and end; at once if asked twice."""
        if self.pool.is_draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self.pool.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(lambda: loop.create_task(self._drain()))

    async def _drain(self) -> None:
        for listener in self.servers:
            listener.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + GRACE
        while self.server_state.connections and loop.time() < end:
            await asyncio.sleep(0.02)
        self.should_exit = True


def serve(bundle: Path, settings: Settings) -> None:
    """Serve a bundle until SIGTERM or SIGINT.

    Raises:
        ValueError: if the folder holds no bundle, a setting is out of range, or the address is
            taken.
    """
    for name, (low, high) in LIMITS.items():
        value = getattr(settings, name)
        if value < low or (high is not None and value > high):
            expected = f"at least {low}" if high is None else f"{low} to {high}"
            raise ValueError(f"--{name}: expected {expected}, got {value}")
    # It fails here, and not in each process.
    spec = load(bundle).spec
    threads = max(1, _cores() // settings.workers)
    pool = Pool(bundle, settings.workers, threads, settings.max_rows)
    api_key = os.environ.get(KEY_VARIABLE) or None
    app = build_app(spec, pool, settings.max_body_mb << 20, api_key)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = settings.host, settings.port
    try:
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(
            f"expected a free port and an address of this machine, got --port {settings.port} and "
            f"--host {settings.host} ({error.strerror}); choose others"
        ) from error
    config = uvicorn.Config(Closing(app, pool), log_level="warning", access_log=False, ws="none")
    Server(config, pool).run([listener])


def _cores() -> int:
    """Return the number of cores that this process may use, where the system tells it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    """Serve the bundle whose copy of this package is running."""
    folder = Path(__file__).parents[2]
    parser = argparse.ArgumentParser("python -m runtime.server", description=f"Serve {folder}.")
    add_options(parser)
    try:
        serve(folder, Settings(**vars(parser.parse_args())))
    except (OSError, ValueError) as error:
        parser.error(str(error))
