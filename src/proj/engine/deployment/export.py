"""Export a run as a bundle: graph, description, runtime, proof and model card."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Template

from proj.engine import PACKAGE, console
from proj.engine.deployment import graph
from proj.engine.deployment.bundle import RUNTIME, file_hash
from proj.engine.deployment.card import model_card
from proj.engine.deployment.proof import require_equal, run_check
from proj.engine.deployment.spec import RELATIVE, build_spec
from proj.engine.deployment.trained import Trained
from proj.engine.runs.files import write_json
from proj.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
HINTS = (
    "No bundle is written.",
    "If the data, the checkpoint or trainer.precision have changed since, run `test` again.",
)


def write_bundle(trained: Trained, output: Path, model_format: str, keep_rows: bool) -> None:
    """Write the bundle of a run into a new folder, if the bundle answers as the run.

    Raises:
        UserError: if the net cannot be exported.
        ProofError: if the bundle answers otherwise.
    """
    with new_folder(output) as folder:
        spec = write_graph(trained, folder, model_format)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(RUNTIME, folder / RUNTIME.name, ignore=ignore)
        proof = prove(trained, folder, folder / RUNTIME.name)
        if keep_rows:
            trained.rows.sample().write(folder / "rows", copy_files=True)
        # Registries have no versions of torch for single kinds of hardware, such as 2.13.0+cpu.
        versions = [f"{name}=={v.partition('+')[0]}\n" for name, v in proof["versions"].items()]
        (folder / "requirements.txt").write_text("".join(versions), encoding="utf-8")
        if model_format == "onnx":
            write_server_files(folder, keep_rows)
        card = model_card(trained, spec, proof, is_private=not keep_rows)
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
        write_json(folder / "proof.json", {**proof, "sha256": hashes})


def write_server_files(folder: Path, has_rows: bool) -> None:
    """Write what runs the server without this project: a Dockerfile and a unit of systemd.

    Args:
        folder: the bundle.
        has_rows: whether it holds rows, with which the container repeats the proof.
    """
    for name in ("requirements-serve.txt", "serve.service"):
        shutil.copyfile(TEMPLATES / name, folder / name)
    template = Template((TEMPLATES / "Dockerfile.j2").read_text(encoding="utf-8"), trim_blocks=True)
    text = template.render(has_rows=has_rows) + "\n"
    (folder / "Dockerfile").write_text(text, encoding="utf-8")


def write_graph(trained: Trained, folder: Path, model_format: str) -> dict[str, Any]:
    """Write the graph and ``bundle.json``; return the content of the latter."""
    names, inputs = list(trained.example), list(trained.example.values())
    spec = build_spec(model_format, names, trained.inputs, trained.outputs)
    console.say(f"exporting {trained.net} as {model_format}")
    program = graph.trace(trained.graph, inputs, trained.net)
    path = folder / spec["model"]["file"]
    if model_format == "onnx":
        graph.write_onnx(program, inputs, names, path)
    elif model_format == "aot":
        graph.compile_torch(program, path)
    else:
        graph.write_torch(program, path)
    write_json(folder / "bundle.json", spec)
    return spec


def prove(
    trained: Trained, bundle: Path, package: Path, hints: Iterable[str] = HINTS
) -> dict[str, Any]:
    """Pass all test rows through a bundle; return the content of ``proof.json``.

    Args:
        trained: the run.
        bundle: folder of the bundle.
        package: the runtime to use; see ``run_check``.
        hints: sentences that explain a difference.

    Raises:
        ProofError: if the bundle answers otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        trained.rows.write(rows, copy_files=False)
        result = run_check(bundle, rows, package, absolute_paths=True)
    for warning in result["unreadable"]:
        console.warn(warning)
    require_equal(result, str(trained.run.path), hints)
    largest = result["largest_difference"]
    console.say(f"proof: {result['rows']} test rows, largest difference {largest:.1e}")
    return {
        "rows": result["rows"],
        "largest_difference": largest,
        "tolerance": RELATIVE,
        **{name: result[name] for name in ("versions", "python", "machine", "system")},
        "exported_with": {name: metadata.version(name) for name in (PACKAGE, "torch")},
    }


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``output`` that is renamed to it at the end.

    After an exception nothing is left. What a killed process has left is removed.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    for other in output.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}", other.name):
            with locked(other) as is_mine:
                if is_mine and not other.is_symlink():
                    shutil.rmtree(other, ignore_errors=True)
    folder = output.parent / f".{output.name}.{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        with locked(folder):
            yield folder
            check_output(output)
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder; yield False if another process holds the lock, or the system has no locks."""
    if os.name != "posix":
        yield False
        return
    import fcntl  # It exists on POSIX systems only.

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = True
    except OSError:
        is_locked = False
    try:
        yield is_locked
    finally:
        os.close(descriptor)


def check_output(output: Path) -> None:
    """Raise UserError if there is a file or folder of this name."""
    if output.exists() or output.is_symlink():
        raise UserError(
            f"--output: expected a new folder, got {output}, which exists; choose another name, or "
            "delete it."
        )
