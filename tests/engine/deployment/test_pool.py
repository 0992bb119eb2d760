"""The pool survives a request that ends each process which answers it."""

import asyncio
import sys
from pathlib import Path

from proj.engine.deployment.runtime.server.bodies import Request
from proj.engine.deployment.runtime.server.pool import MAX_TRIES, Pool
from proj.engine.deployment.runtime.server.worker import Reply

# Answers each request with its body, and ends at the body "end".
WORKER = """
import os, socket, sys
from proj.engine.deployment.runtime.server.worker import frame, receive
connection = socket.socket(fileno=0)
connection.sendall(frame({}))
while (batch := receive(connection)) is not None:
    if any(parts == [b"end"] for _, parts in batch):
        os._exit(1)
    connection.sendall(frame([(200, parts[0]) for _, parts in batch]))
"""


def test_a_request_that_ends_its_workers_fails_alone(tmp_path: Path) -> None:
    """Requests of the same batch are answered, and the processes are started again."""
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    bodies = [b"a", b"b", b"end", b"c", b"d"]

    async def ask_all() -> tuple[list[Reply], int, int]:
        pool = Pool(tmp_path, workers=1, threads=1, max_rows=1)
        pool.command = [sys.executable, str(program)]
        await pool.start()
        # All wait until the process is ready, so they are one batch.
        replies = await asyncio.gather(*(pool.ask(Request("json", [body])) for body in bodies))
        later = await pool.ask(Request("json", [b"e"]))
        waiting = pool.waiting_bytes
        await pool.close()
        return [*replies, later], pool.restarts, waiting

    replies, restarts, waiting = asyncio.run(asyncio.wait_for(ask_all(), 60))
    assert [content for status, content in replies if status == 200] == [
        b"a",
        b"b",
        b"c",
        b"d",
        b"e",
    ]
    assert replies[2][0] == 500
    assert f"{MAX_TRIES} processes have ended" in replies[2][1].decode()
    assert restarts == MAX_TRIES
    assert waiting == 0
