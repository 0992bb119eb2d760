"""The processes that predict: requests wait here for an idle one, and outlive its death."""

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .bodies import Request
from .worker import LENGTH, Reply, fault_reply, frame

# Requests that a worker takes at once, and what their bodies may hold together, in bytes.
MAX_BATCH, MAX_BATCH_BYTES = 64, 1 << 22
# How often a request is sent again after its worker died. It may be what the worker died of.
MAX_TRIES = 5
# Requests that may wait, and what their bodies may hold together, in bytes.
MAX_WAITING, MAX_WAITING_BYTES = 10_000, 1 << 28
# The folder of the package that this module is a part of.
ROOT = Path(__file__).absolute().parents[str(__package__).count(".") + 1]
# Seconds between the starts of a worker that ends before it is ready.
PAUSE = 1.0


class Job:
    """A request that waits for its reply."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.size = sum(map(len, request.parts))
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.tries = 0


class Link(asyncio.Protocol):
    """The connection to one worker, which answers one batch at a time."""

    def __init__(self, on_message: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self.on_message, self.on_end = on_message, on_end
        self.buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) < LENGTH.size:
            return
        end = LENGTH.size + LENGTH.unpack_from(self.buffer)[0]
        if len(self.buffer) >= end:
            content, self.buffer = bytes(self.buffer[LENGTH.size : end]), self.buffer[end:]
            self.on_message(content)

    def connection_lost(self, error: Exception | None) -> None:
        self.on_end()


class WorkerProcess:
    """One worker: a process, the connection to it, and the batch that it answers."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.transport: asyncio.WriteTransport | None = None
        self.batch: list[Job] = []
        self.is_ready = False


class Pool:
    """Answers requests with several processes, each of which has loaded the bundle.

    A request goes to an idle process. While all are busy, requests gather, and the next idle
    process answers them together. If a process dies, its requests go to another one, each alone,
    since one of them may have killed it; the process is started again.

    Args:
        bundle: the folder of the bundle.
        workers: number of processes.
        threads: threads of each process for one forward pass.
        max_rows: rows that a request may have.
    """

    def __init__(self, bundle: Path, workers: int, threads: int, max_rows: int) -> None:
        # The module has the same name as here, whether it is a part of a bundle or of a project.
        options = [str(bundle), str(threads), str(max_rows)]
        self.command = [sys.executable, "-m", f"{__package__}.worker", *options]
        self.workers = [WorkerProcess() for _ in range(workers)]
        self.waiting: deque[Job] = deque()
        self.waiting_bytes = 0
        self.restarts = 0
        self.is_draining, self.is_closed = False, False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> int:
        """The number of processes that can answer."""
        return sum(worker.is_ready for worker in self.workers)

    async def start(self) -> None:
        """Start all processes. They get ready in the meantime."""
        for worker in self.workers:
            await self._start(worker)

    async def ask(self, request: Request) -> Reply:
        """Return the reply to a request. It is refused if too many wait already."""
        job = Job(request)
        if len(self.waiting) >= MAX_WAITING or self.waiting_bytes + job.size > MAX_WAITING_BYTES:
            return fault_reply(503, [([], "too many requests wait; try again later")])
        self.waiting_bytes += job.size
        self.waiting.append(job)
        self._dispatch()
        try:
            return await job.reply
        finally:
            self.waiting_bytes -= job.size

    async def close(self) -> None:
        """End the processes; they answer what they have received before."""
        self.is_closed = True
        for worker in self.workers:
            if worker.transport is not None:
                worker.transport.close()
        for worker in self.workers:
            if worker.process is not None:
                await asyncio.to_thread(_end, worker.process)

    async def _start(self, worker: WorkerProcess) -> None:
        ours, theirs = socket.socketpair()
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        worker.process = subprocess.Popen(self.command, stdin=theirs.fileno(), env=env)
        theirs.close()
        link = Link(lambda content: self._take(worker, content), lambda: self._replace(worker))
        loop = asyncio.get_running_loop()
        worker.transport, _ = await loop.create_connection(lambda: link, sock=ours)

    def _take(self, worker: WorkerProcess, content: bytes) -> None:
        """Take a message of a worker: that it is ready, or its replies."""
        message = pickle.loads(content)  # Our own process has written it.
        if not worker.is_ready:
            worker.is_ready = True
        else:
            jobs, worker.batch = worker.batch, []
            for job, reply in zip(jobs, message, strict=True):
                if not job.reply.done():  # The client may have gone.
                    job.reply.set_result(reply)
        self._dispatch()

    def _dispatch(self) -> None:
        """Send waiting requests to idle workers."""
        for worker in self.workers:
            if not self.waiting:
                return
            if worker.is_ready and not worker.batch:
                worker.batch = self._next_batch()
                assert worker.transport is not None
                worker.transport.write(frame([tuple(job.request) for job in worker.batch]))

    def _next_batch(self) -> list[Job]:
        batch = [self.waiting.popleft()]
        size = batch[0].size
        while self.waiting and len(batch) < MAX_BATCH and not batch[0].tries:
            job = self.waiting[0]
            size += job.size
            if job.tries or size > MAX_BATCH_BYTES:
                break
            batch.append(self.waiting.popleft())
        return batch

    def _replace(self, worker: WorkerProcess) -> None:
        """Start a process again that has ended, and send its requests again."""
        was_ready, worker.is_ready, worker.transport = worker.is_ready, False, None
        if self.is_closed:
            return
        self.restarts += 1
        jobs, worker.batch = worker.batch, []
        for job in reversed(jobs):
            job.tries += 1
            if job.tries < MAX_TRIES or len(jobs) > 1:
                self.waiting.appendleft(job)
            elif not job.reply.done():
                message = f"{MAX_TRIES} processes have ended while they answered this request"
                job.reply.set_result(fault_reply(500, [([], message)]))
        task = asyncio.create_task(self._restart(worker, 0.0 if was_ready else PAUSE))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._dispatch()

    async def _restart(self, worker: WorkerProcess, pause: float) -> None:
        assert worker.process is not None
        await asyncio.to_thread(_end, worker.process)
        await asyncio.sleep(pause)
        if not self.is_closed:
            await self._start(worker)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended that should; kill it if it does not."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()
