"""Repeat the proof of a bundle on this machine."""

from pathlib import Path

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.deployment.bundle import (
    REMEDY,
    RUNTIME,
    changed_files,
    require_trust,
)
from proj.engine.deployment.ensemble import load_source, restore_source
from proj.engine.deployment.export import prove
from proj.engine.deployment.proof import ProofError, require_equal, run_check
from proj.engine.runs.files import is_present
from proj.errors import UserError


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
    require_trust(bundle, options.trust)
    if options.run is not None:
        trained = load_source(restore_source(["--run", options.run]), "verify")
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


def changed_hints(bundle: Path) -> list[str]:
    """Return the sentences that explain a difference."""
    changed = changed_files(bundle)
    if not changed:
        return ["The files are those of the export: compare the versions with proof.json."]
    return [f"Changed since the export: {', '.join(changed)}."]
