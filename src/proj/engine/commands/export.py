"""Export a run or an ensemble with its preprocessing as a bundle; prove that it answers alike."""

from importlib.util import find_spec
from pathlib import Path

from proj.engine import console
from proj.engine.deployment.ensemble import load_source, restore_source
from proj.engine.deployment.export import check_output, write_bundle
from proj.errors import UserError, nearest

FORMATS = ("onnx", "torch")
# Packages that the format needs, of the extra `export`.
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}


def export(args: list[str]) -> None:
    """Write a bundle of a run, or of an ensemble, that has been tested."""
    source = restore_source(args)
    cli = source.restored[0].cli
    model_format = cli.option("format") or "onnx"
    if model_format not in FORMATS:
        raise UserError(
            f"--format: expected {' or '.join(FORMATS)}, got {model_format!r}."
            f"{nearest(model_format, FORMATS)}"
        )
    compiles = bool(cli.option("compile"))
    if compiles and model_format != "torch":
        raise UserError("--compile: expected --format torch, got onnx; add it.")
    if missing := [name for name in NEEDED[model_format] if find_spec(name) is None]:
        raise UserError(
            f"export: the package {missing[0]} is not installed; install the extra export: "
            "python -m pip install --constraint constraints.txt --editable '.[export]'."
        )
    output = Path(cli.option("output") or source.run.path / "bundle")
    check_output(output)
    trained = load_source(source, "export")
    model_format = "aot" if compiles else model_format
    write_bundle(trained, output, model_format, keep_rows=not cli.option("no_rows"))
    console.say(f"bundle: {output}")
