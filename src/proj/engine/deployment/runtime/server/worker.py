"""A process that answers requests: it reads batches of them from its parent, and predicts.

usage: python -m runtime.server.worker BUNDLE THREADS MAX_ROWS

Standard input is a socket of the parent.
"""

import json
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..predictor import Predictor
from .bodies import BodyError, Request, encode, read_rows

# Pixels of one image, if the run sets no limit.
MAX_PIXELS = 100_000_000
# Rows that one forward pass answers together, and by how much that must be faster than apart.
JOINT_ROWS, MIN_GAIN = 16, 1.2
# Rows of one forward pass for several requests. More do not fit into the caches of processors.
MAX_JOINT_ROWS = 128
LENGTH = struct.Struct("<I")

Reply = tuple[int, bytes]  # the status code, and the body in JSON
# The position of a request in its batch, the inputs of the net for its rows, and their number.
Encoded = tuple[int, dict[str, Any], int]


class Worker:
    """Answers batches of requests with one bundle."""

    def __init__(self, model: Predictor, max_rows: int) -> None:
        self.model, self.max_rows = model, max_rows
        if model.kind == "images" and model.encoder.max_pixels is None:  # type: ignore[union-attr]
            model.encoder.max_pixels = MAX_PIXELS  # type: ignore[union-attr]
        self.is_joint = self._gain() >= MIN_GAIN

    def _gain(self) -> float:
        """Return how many times faster rows are answered together than one by one."""
        x = self.model.zeros()
        joint = {name: np.repeat(values, JOINT_ROWS, axis=0) for name, values in x.items()}
        return JOINT_ROWS * self._seconds(x) / self._seconds(joint)

    def _seconds(self, x: dict[str, Any]) -> float:
        """Return the shortest of some forward passes; the first ones allocate memory."""
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self.model.run(x)
            times.append(time.perf_counter() - start)
        return min(times)

    def answer(self, requests: list[Request]) -> list[Reply]:
        """Return the reply to each request."""
        replies: list[Reply | None] = [None] * len(requests)
        inputs: list[Encoded] = []
        for i, request in enumerate(requests):
            try:
                rows, count = read_rows(self.model, request, self.max_rows)
                if count:
                    inputs.append((i, encode(self.model, rows), count))
                else:
                    replies[i] = _reply([])
            except BodyError as error:
                replies[i] = fault_reply(error.status, error.faults)
        for group in self._groups(inputs):
            for i, reply in self._predict(group):
                replies[i] = reply
        assert None not in replies
        return replies  # type: ignore[return-value]

    def _groups(self, inputs: list[Encoded]) -> Iterator[list[Encoded]]:
        """Yield what goes through the net together."""
        group: list[Encoded] = []
        for one in inputs:
            rows = sum(count for _, _, count in group) + one[2]
            if group and (rows > MAX_JOINT_ROWS or not self.is_joint):
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _predict(self, group: list[Encoded]) -> list[tuple[int, Reply]]:
        """Return replies by the position of the request."""
        x = group[0][1]
        if len(group) > 1:
            x = {name: np.concatenate([inputs[name] for _, inputs, _ in group]) for name in x}
        answers = rows_of(self.model.answers(self.model.run(x)))
        replies, start = [], 0
        for i, _, count in group:
            replies.append((i, _reply(answers[start : start + count])))
            start += count
        return replies


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return columns of answers as one dict per row."""
    plain = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*plain, strict=True)]


def _reply(predictions: list[dict[str, Any]]) -> Reply:
    return 200, json.dumps({"predictions": predictions}, separators=(",", ":")).encode()


def fault_reply(status: int, faults: Any) -> Reply:
    """Return a reply about faults, in the form that FastAPI documents."""
    detail = [
        {"loc": ["body", *place], "msg": message, "type": "value_error"}
        for place, message in faults
    ]
    return status, json.dumps({"detail": detail}).encode()


def receive(connection: socket.socket) -> Any:
    """Return the next message, None after the last one."""
    header = _receive_exactly(connection, LENGTH.size)
    if header is None:
        return None
    content = _receive_exactly(connection, LENGTH.unpack(header)[0])
    return None if content is None else pickle.loads(content)  # The parent has written it.


def _receive_exactly(connection: socket.socket, size: int) -> bytearray | None:
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if not count:
            return None
        done += count
    return content


def frame(message: Any) -> bytes:
    """Return a message with its length before it."""
    content = pickle.dumps(message)
    return LENGTH.pack(len(content)) + content


def main() -> None:
    bundle, threads, max_rows = sys.argv[1:]
    # The parent answers what it has accepted before it ends; then this process sees the end of its
    # connection. A signal to the whole group, as Ctrl-C, must not end this process before.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=sys.stdin.fileno())
    worker = Worker(Predictor(Path(bundle), int(threads)), int(max_rows))
    connection.sendall(frame({"joint": worker.is_joint}))
    while (batch := receive(connection)) is not None:
        connection.sendall(frame(_answer(worker, [Request(*request) for request in batch])))


def _answer(worker: Worker, requests: list[Request]) -> list[Reply]:
    """Return replies. An error in this program must not reach other requests of the batch."""
    try:
        return worker.answer(requests)
    except Exception:
        if len(requests) > 1:
            return [reply for request in requests for reply in _answer(worker, [request])]
        traceback.print_exc()
        return [fault_reply(500, [([], "an error of the server; its log has the details")])]


if __name__ == "__main__":
    main()
