"""Check that the files of a folder of images can be read before any of them is opened."""

import os
import stat
from pathlib import Path

from proj.errors import UserError

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def check_files(root: Path, names: list[str], option: str) -> None:
    """Raise UserError unless all images are files with names in UTF-8.

    Opening a named pipe would wait for a writer, and reading some devices has no end.

    Args:
        root: the folder.
        names: the images, relative to it.
        option: the option that names the folder, for the message.
    """
    for name in names:
        path = root / name
        try:
            name.encode()
            kind = stat.S_IFMT(path.stat().st_mode)
        except UnicodeEncodeError:
            raise UserError(
                f"{option}: expected file and folder names in UTF-8, got {str(path)!a}; rename it."
            ) from None
        except OSError as error:
            what = "a link to a file that does not exist" if os.path.islink(path) else str(error)
            raise UserError(
                f"{option}: expected image files, {path} is {what}; remove it."
            ) from error
        if kind != stat.S_IFREG:
            what = KINDS.get(kind, "no file")
            raise UserError(f"{option}: expected image files, {path} is {what}; remove it.")
