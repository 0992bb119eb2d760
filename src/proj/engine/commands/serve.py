"""Serve a bundle over HTTP."""

from pathlib import Path

from proj.engine import console
from proj.engine.config.parser import VerbParser
from proj.engine.deployment.bundle import changed_files, require_trust
from proj.engine.deployment.runtime.server import service
from proj.errors import UserError


def serve(args: list[str]) -> None:
    """Answer requests with a bundle, with the server of this installation, until SIGTERM."""
    parser = VerbParser("serve", "Answer requests over HTTP with a bundle that `export` wrote.")
    parser.add_argument("bundle", help="folder that `export` has written")
    service.add_options(parser)
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a program of torch.export, which may run code; bundles in ONNX need no trust",
    )
    options = vars(parser.parse_args(args))
    bundle, is_trusted = Path(options.pop("bundle")), options.pop("trust")
    require_trust(bundle, is_trusted)
    if changed := changed_files(bundle):
        console.warn(f"{bundle} has changed since its proof: {', '.join(changed)}.")
    try:
        service.serve(bundle, service.Settings(**options))
    except (OSError, ValueError) as error:
        raise UserError(f"serve: {error}.") from error
