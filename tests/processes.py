"""Command lines of the tests in processes of their own, started quickly.

Importing torch and Lightning takes seconds. One server process imports them once and forks for
each command line; the forked process then does what ``python -m MODULE ARGUMENTS`` does. In it,
``sys.executable`` is a small stand-in program that asks the same server, so the workers of a study
and the processes of DDP start quickly too. Tests that are about the start itself use ``subprocess``
with ``REAL_PYTHON``.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

REAL_PYTHON = sys.executable
FOLDER = "PROJ_TEST_SERVER"  # the variable with the folder of the socket and the stand-in
BLANK_FIGURES = "PROJ_TEST_BLANK_FIGURES"  # the variable that makes processes render blank figures
# The variable with constants that processes change, as JSON: values by the names of a module.
CONSTANTS = "PROJ_TEST_CONSTANTS"
TESTS = Path(__file__).parent
PARSERS: dict[str, Any] = {}  # the parser of each verb

# Runs without site-packages, which takes 20 ms. Options other than `-u -m MODULE` are left to the
# real interpreter. A signal goes on to the forked process; SIGKILL closes the socket, upon which
# the server kills the forked process.
STAND_IN = """#!{python} -SI
import json, os, signal, socket, sys
arguments = [word for word in sys.argv[1:] if word != "-u"]
if len(arguments) < 2 or arguments[0] != "-m":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
forwarded = {{signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}}
signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps({{"arguments": arguments[1:], "cwd": os.getcwd(), "env": dict(os.environ)}})
socket.send_fds(server, [len(request).to_bytes(4, "little")], [0, 1, 2])
server.sendall(request.encode())
for number in (0, 1):  # what is at the other end of a pipe must see the forked process end
    os.close(number)
answers = server.makefile()
process = json.loads(answers.readline())
for number in forwarded:
    signal.signal(number, lambda number, frame: os.kill(process, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
status = json.loads(answers.readline())
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != 9 else None
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


class Process:
    """A process that the server has forked, with the methods of ``subprocess.Popen``.

    It leads a session of its own. It is killed if it still runs when the test process ends.
    """

    def __init__(
        self,
        *arguments: Any,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: IO[Any] | int = subprocess.DEVNULL,
        stderr: IO[Any] | int = subprocess.DEVNULL,
    ) -> None:
        environment = os.environ if env is None else env
        request = {
            "arguments": list(map(str, arguments)),
            "cwd": str(cwd or Path.cwd()),
            # Lightning leaves the seed of trainings in the test process in PL_GLOBAL_SEED.
            "env": {name: environment[name] for name in environment if not name.startswith("PL_")},
        }
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(f"{os.environ[FOLDER]}/socket")
        with Path(os.devnull).open("r+") as null:
            files = [null if file == subprocess.DEVNULL else file for file in (stdout, stderr)]
            _send_request(self.server, request, [null, *files])
        self.answers = self.server.makefile()
        self.pid: int = json.loads(self.answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        return self._exit_code(0.0)

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code; raise ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # It may have just ended.
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _exit_code(self, timeout: float) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.server, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            self.returncode = os.waitstatus_to_exitcode(json.loads(self.answers.readline()))
            self.answers.close()
            self.server.close()
        return self.returncode


def run(
    *arguments: Any,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m``, or a ``.py`` file, to its end; return its exit code and its output."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Process(*arguments, env=env, cwd=cwd, stdout=stdout, stderr=stderr)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(
            list(map(str, arguments)), code, stdout.read(), stderr.read()
        )


def forget(*packages: str) -> None:
    """Remove packages from the imported modules: this process imports them like a new one."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def stand_in() -> str:
    """Return the path of a program that takes the arguments of Python and asks the server."""
    return f"{os.environ[FOLDER]}/python"


def render_blank_figures(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the rendering of Matplotlib: SVG files are empty and pixels are blank."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    savefig = Figure.savefig

    def save_blank(figure: Figure, file: Any, **options: Any) -> None:
        if options.get("format") == "svg":
            file.write('<svg viewBox="0 0 1 1"></svg>')
        else:
            savefig(figure, file, **options)

    set_attribute(Figure, "savefig", save_blank)
    set_attribute(FigureCanvasAgg, "draw", lambda canvas: canvas.get_renderer())


def save_time(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Do once what each command line does in the same way, and wait for no disk.

    Parsing does not change a parser of Lightning's CLI, so one of each verb is enough. A process
    that a test kills loses no data of the system's, only a power failure would.
    """
    import torch
    from lightning.fabric.utilities import registry

    import quick_parser
    from proj.engine.config import experiment, parser
    from proj.engine.config.experiment import ExperimentCLI

    build = ExperimentCLI.setup_parser

    def keep_parser(cli: ExperimentCLI, *arguments: Any) -> None:
        if cli.verb not in PARSERS:
            build(cli, *arguments)
            PARSERS[cli.verb] = cli.parser
        cli.parser = PARSERS[cli.verb]

    set_attribute(ExperimentCLI, "setup_parser", keep_parser)
    # Tests leave the user's cache as it is.
    for module in (experiment, parser):
        set_attribute(module, "keep_help", lambda verb, text: None)
    set_attribute(registry, "entry_points", functools.cache(registry.entry_points))
    set_attribute(os, "fsync", lambda descriptor: None)
    # The graph in TensorBoard is traced once, not twice for a comparison.
    set_attribute(torch.jit, "trace", functools.partial(torch.jit.trace, check_trace=False))
    quick_parser.install(set_attribute)


# The server


class Server:
    """The server of a test session: made by the process that pytest was started as."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="proj_tests_")
        os.environ[FOLDER] = self.folder
        address = f"{self.folder}/socket"
        program = Path(self.folder, "python")
        program.write_text(STAND_IN.format(python=REAL_PYTHON, address=address))
        program.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(64)
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [REAL_PYTHON, __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env={**os.environ, **one_thread, "CUDA_VISIBLE_DEVICES": ""},
            cwd=self.folder,
            start_new_session=True,
        )
        listener.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        del os.environ[FOLDER]


def _send_request(server: socket.socket, request: dict[str, Any], files: list[Any]) -> None:
    content = json.dumps(request).encode()
    numbers = [file if isinstance(file, int) else file.fileno() for file in files]
    socket.send_fds(server, [len(content).to_bytes(4, "little")], numbers)
    server.sendall(content)


def _receive_request(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the request, None if the process that asked was killed while it wrote it."""
    size, numbers, _, _ = socket.recv_fds(connection, 4, 3)
    content = b""
    while len(size) == 4 and len(content) < int.from_bytes(size, "little"):
        part = connection.recv(1 << 20)
        if not part:
            break
        content += part
    complete = len(size) == 4 and len(content) == int.from_bytes(size, "little")
    return json.loads(content) if complete else None, numbers


def prepare() -> None:
    """Import what command lines use, and parse one, which fills the caches of jsonargparse.

    A fork copies one thread only. Polars may be imported before it, but not used: the two threads
    that its import starts are not needed later, the ones of its first query are.
    """
    import torch

    import proj
    from proj.engine.cli import main
    from proj.engine.security import restrict_imports

    for name in ("torchmetrics.classification", "tensorboard.main", "matplotlib.figure"):
        importlib.import_module(name)
    for name in ("sklearn.metrics", "torch.utils.tensorboard", "torch.distributed.run", "optuna"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(proj.__path__, "proj."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    restrict_imports()
    save_time()
    with contextlib.redirect_stdout(io.StringIO()):
        main(["fit", "--config", str(TESTS.parent / "configs/digits.yaml"), "--print_config"])
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    threads = {name for name in names if not name.startswith(("python", "jemalloc", "polars-ooc"))}
    assert not threads, f"threads run after the imports, a forked process may hang: {threads}"
    # At exit torch would take back 200 registrations one by one, which takes 30 ms per process.
    for finalizer, record in weakref.finalize._registry.items():  # type: ignore[attr-defined]
        finalizer.atexit &= record.func is not torch.library._del_library
    gc.collect()
    gc.freeze()  # A forked process would copy the memory of all objects that it looks at.
    gc.set_threshold(700, 10, 100)


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork a process for each request until standard input closes.

    Returns the request in the forked process only.
    """
    selector = selectors.DefaultSelector()
    ended, on_end = socket.socketpair()
    ended.setblocking(False)
    on_end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(on_end.fileno())
    for file in (listener, ended, sys.stdin):
        selector.register(file, selectors.EVENT_READ)
    processes: dict[int, socket.socket] = {}
    prepared = False
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        # A stand-in that was killed is handled before new requests: a process that replaces the
        # killed one must not meet it.
        for process, connection in list(processes.items()):
            if connection in ready:
                os.kill(process, signal.SIGKILL)
                _report(selector, processes, *os.waitpid(process, 0))
        if ended in ready:
            ended.recv(4096)
            while processes and (status := os.waitpid(-1, os.WNOHANG))[0]:
                _report(selector, processes, *status)
        if sys.stdin in ready:
            for process in processes:
                os.kill(process, signal.SIGKILL)
            shutil.rmtree(Path.cwd(), ignore_errors=True)  # the folder of the socket
            sys.exit()
        if listener in ready:
            if not prepared:
                prepare()
                prepared = True
            connection, _ = listener.accept()
            request, numbers = _receive_request(connection)
            process = os.fork() if request else None
            if request and process == 0:
                signal.set_wakeup_fd(-1)
                request["files"] = numbers
                return request
            for number in numbers:
                os.close(number)
            if process is None:
                connection.close()
                continue
            processes[process] = connection
            selector.register(connection, selectors.EVENT_READ)
            with contextlib.suppress(OSError):  # The process that asked was killed.
                connection.sendall(f"{process}\n".encode())


def _report(
    selector: selectors.BaseSelector,
    processes: dict[int, socket.socket],
    process: int,
    status: int,
) -> None:
    connection = processes.pop(process)
    selector.unregister(connection)
    with contextlib.suppress(OSError):  # The process that asked may be gone.
        connection.sendall(f"{status}\n".encode())
    connection.close()


def become(request: dict[str, Any]) -> str:
    """Make this forked process what a new one would be; return the module to run."""
    import numpy as np
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    os.setsid()
    for target, number in enumerate(request["files"]):
        os.dup2(number, target)
    os.closerange(3, 1024)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    module, *arguments = request["arguments"]
    sys.argv = [module, *arguments]
    sys.executable = stand_in()
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0] = str(TESTS)
    sys.path[:0] = [request["cwd"], *(path for path in paths if path and path not in sys.path)]
    # What the packages read from the environment when they were imported.
    tempfile.tempdir = None
    rank_zero_only.rank = _get_rank() or 0
    torch.set_num_threads(1)  # The suite runs in two processes, each of which may start several.
    np.random.seed()
    if os.environ.get(BLANK_FIGURES):
        render_blank_figures()
    for name, values in json.loads(os.environ.get(CONSTANTS, "{}")).items():
        vars(importlib.import_module(name)).update(values)
    return module


def run_module(module: str) -> int:
    """Run a module as ``python -m`` does, or a file as a script; return the exit code."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
            if module.endswith(".py"):
                runpy.run_path(module, run_name="__main__")
            else:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit_request:
        if isinstance(exit_request.code, str):
            print(exit_request.code, file=sys.stderr)
            return 1
        return exit_request.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End this process like the interpreter does, but without the seconds of deleting modules."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(run_module(become(serve(socket.socket(fileno=int(sys.argv[1]))))))
