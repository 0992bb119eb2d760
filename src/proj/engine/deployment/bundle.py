"""Read the folder of a bundle without trusting it."""

import hashlib
from pathlib import Path
from typing import Any, TypedDict

from proj.engine.deployment.runtime import __file__ as runtime_file
from proj.engine.escaping import visible
from proj.engine.runs.files import is_present, read_json
from proj.engine.write_paths import check_links
from proj.errors import UserError

# The package of this installation, which reads bundles of other people.
RUNTIME = Path(runtime_file).parent
FILES = {"onnx": "model.onnx", "torch": "model.pt2", "aot": "model.pt2"}
REMEDY = "export the run again"


class ModelSection(TypedDict):
    """The section ``model`` of ``bundle.json``."""

    file: str
    format: str
    inputs: list[str]


class Bundle(TypedDict):
    """The sections of ``bundle.json`` that `verify` reads itself."""

    bundle: int
    model: ModelSection
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class Proof(TypedDict):
    """The entries of ``proof.json`` that `verify` reads."""

    sha256: dict[str, str]


def check_bundle(bundle: Path) -> str:
    """Return the format of a bundle's model.

    Raises:
        UserError: if the folder holds no bundle, or files outside it would be read.
    """
    path = bundle / "bundle.json"
    if not is_present(path):
        raise UserError(f"{bundle}: expected a bundle of `export`, found no bundle.json in it.")
    check_links(bundle)
    model: Any = read_json(path, Bundle, REMEDY)["model"]
    if FILES.get(model["format"]) != model["file"]:
        file, model_format = (visible(model[name])[:80] for name in ("file", "format"))
        raise UserError(
            f"{path} is damaged: expected {' or '.join(sorted(set(FILES.values())))}, got "
            f"{file!r} of the format {model_format!r}; {REMEDY}."
        )
    return str(model["format"])


def require_trust(bundle: Path, is_trusted: bool) -> None:
    """Check the folder of a bundle, and refuse a model that may run code unless it is trusted.

    Raises:
        UserError: if the bundle may not be used.
    """
    model_format = check_bundle(bundle)
    if model_format != "onnx" and not is_trusted:
        raise UserError(
            f"{bundle}: expected a bundle in ONNX, got the format {model_format}, a program that "
            "may run any code; if you trust whoever made it, add --trust."
        )


def changed_files(bundle: Path) -> list[str]:
    """Return the files that are not as `export` has written them, and code that it has not."""
    proof: Proof = read_json(bundle / "proof.json", Proof, REMEDY)
    hashes = proof["sha256"]
    code = [path.relative_to(bundle).as_posix() for path in (bundle / RUNTIME.name).rglob("*.py")]
    changed = [
        name
        for name, sha256 in hashes.items()
        if ".." in Path(name).parts
        or Path(name).is_absolute()
        or not (bundle / name).is_file()
        or file_hash(bundle / name) != sha256
    ]
    return [visible(name)[:80] for name in (*changed, *sorted(set(code) - hashes.keys()))]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
