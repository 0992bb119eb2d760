"""Repeat the proof of a bundle on this machine."""

from pathlib import Path
from typing import Any, TypedDict

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.deployment.export import prove
from proj.engine.deployment.proof import RUNTIME, ProofError, require_equal, run_check
from proj.engine.deployment.spec import FILES, file_hash
from proj.engine.deployment.trained import load_trained
from proj.engine.escaping import visible
from proj.engine.evaluation.restore import restore
from proj.engine.runs.files import is_present, read_json
from proj.engine.write_paths import check_links
from proj.errors import UserError

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


def verify(args: list[str]) -> None:
    """Compare a bundle's answers with those of the run, for the rows in it or of the run."""
    parser = VerbParser("verify", "Repeat the proof of a bundle on this machine.")
    parser.add_argument("bundle", help="folder that `export` has written")
    parser.add_argument(
        "--run",
        help="run whose test rows to use, by name or folder; default: the rows in the bundle",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a program of torch.export, which may run code; bundles in ONNX need no trust",
    )
    options = parser.parse_args(args)
    bundle = Path(options.bundle)
    model_format = check_bundle(bundle)
    if model_format != "onnx" and not options.trust:
        raise UserError(
            f"{bundle}: expected a bundle in ONNX, got the format {model_format}, a program that "
            "may run any code; if you trust whoever made it, add --trust."
        )
    if options.run is not None:
        trained = load_trained(restore("export", ["--run", options.run]), "verify")
        prove(trained, bundle, RUNTIME, changed_hints(bundle))
    else:
        _repeat(bundle)
    if changed := changed_files(bundle):
        raise ProofError(
            f"{bundle}: expected the files of the export, got changes in {', '.join(changed)}; "
            f"{REMEDY}."
        )


def _repeat(bundle: Path) -> None:
    rows = bundle / "rows"
    if not is_present(rows / "rows.jsonl"):
        raise UserError(
            f"{bundle}: expected rows to compare, found none, as of `export --no_rows`; use those "
            "of the run with --run RUN."
        )
    try:
        result = run_check(bundle, rows, RUNTIME, absolute_paths=False)
    except UserError as error:
        raise UserError(f"{error} {' '.join(changed_hints(bundle))}") from error
    require_equal(result, str(bundle), changed_hints(bundle))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    console.say(
        f"verified: {result['rows']} rows, largest difference {result['largest_difference']:.1e} "
        f"({versions}, Python {result['python']}, {result['machine']})"
    )


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


def changed_files(bundle: Path) -> list[str]:
    """Return the files that are not as `export` has written them, and code that it has not."""
    proof: Proof = read_json(bundle / "proof.json", Proof, REMEDY)
    hashes = proof["sha256"]
    code = [path.relative_to(bundle).as_posix() for path in bundle.glob(f"{RUNTIME.name}/*.py")]
    changed = [
        name
        for name, sha256 in hashes.items()
        if ".." in Path(name).parts
        or Path(name).is_absolute()
        or not (bundle / name).is_file()
        or file_hash(bundle / name) != sha256
    ]
    return [visible(name)[:80] for name in (*changed, *sorted(set(code) - hashes.keys()))]


def changed_hints(bundle: Path) -> list[str]:
    """Return the sentences that explain a difference."""
    changed = changed_files(bundle)
    if not changed:
        return ["The files are those of the export: compare the versions with proof.json."]
    return [f"Changed since the export: {', '.join(changed)}."]
