"""Exceptions and signals: messages and exit codes."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from proj.engine.exit_codes import (
    as_user_error,
    exit_code,
    keep_interrupts,
    signal_exit_codes,
    stop_signals,
)
from proj.errors import Stopped, TrainingError, UserError


def raising(error: BaseException) -> Any:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("wrong"), 2),
        (TrainingError("failed"), 3),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit(), 0),
        (SystemExit("text"), 1),
    ],
)
def test_each_kind_of_end_has_its_exit_code(error: BaseException, code: int, capsys: Any) -> None:
    """A script could not tell a mistake from a failed training or a stopped one."""
    assert exit_code(raising(error)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_raises_the_users_errors() -> None:
    """`--debug` would hide the traceback."""
    for error in (UserError("wrong"), TrainingError("failed")):
        with pytest.raises(type(error)):
            exit_code(raising(error), debug=True)
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))


def test_errors_of_user_code_say_what_failed_and_where() -> None:
    """A user would see neither the reason nor the line."""
    message = r"^the net \(test_exit_codes.py, line \d+\): no such key\. "
    with pytest.raises(UserError, match=message), as_user_error("the net"):
        raise RuntimeError("no such\nkey!")
    with pytest.raises(TrainingError), as_user_error("the net"):
        raise TrainingError("failed")


@pytest.mark.parametrize(
    ("error", "code", "other_process"),
    [
        (Stopped(signal.SIGTERM), 143, 0),
        (Stopped(signal.SIGINT), 130, 0),
        (SystemExit(7), 7, 7),
    ],
)
def test_a_stopped_trainer_ends_with_the_code_of_the_signal(
    error: BaseException, code: int, other_process: int
) -> None:
    """A job scheduler would take a stopped run for a finished or a failed one."""
    for is_global_zero, expected in ((True, code), (False, other_process)):
        trainer: Any = SimpleNamespace(is_global_zero=is_global_zero)
        with pytest.raises(SystemExit) as stop, signal_exit_codes(trainer):
            raise error
        assert stop.value.code == expected


def test_a_full_disk_is_a_failed_training_and_other_errors_are_bugs() -> None:
    """A full disk would print a traceback, or a bug would be taken for a full disk."""
    trainer: Any = SimpleNamespace(is_global_zero=True)
    with pytest.raises(TrainingError, match="cannot write to the disk"), signal_exit_codes(trainer):
        raise OSError(errno.ENOSPC, "no space")
    with pytest.raises(PermissionError), signal_exit_codes(trainer):
        raise PermissionError(errno.EACCES, "denied")


def test_stop_signals_reach_the_handler_and_only_inside() -> None:
    """Ctrl-C would stop a study without saving, or be ignored for good afterwards."""
    numbers: list[int] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_signals(numbers.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert numbers == [signal.SIGTERM, signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ZeroDivisionError), stop_signals(numbers.append):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_stop_signals_do_nothing_outside_the_main_thread() -> None:
    """A training in a thread, as in a web server, would raise ValueError."""
    before = signal.getsignal(signal.SIGINT)
    handlers = []

    def work() -> None:
        with stop_signals(lambda number: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    """`python -m proj --help | head -1` would print a BrokenPipeError."""
    process = subprocess.Popen(
        [sys.executable, "-m", "proj", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 141
    assert errors == ""


def test_an_interrupt_during_a_finalizer_is_not_lost() -> None:
    """Python prints and ignores an exception in ``__del__``: the program would go on."""

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def use_one() -> None:
        Interrupted()
        time.sleep(10)

    # A job in the background of a shell ignores the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with keep_interrupts(), pytest.raises(KeyboardInterrupt):
            use_one()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
