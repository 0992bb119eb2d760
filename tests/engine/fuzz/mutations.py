"""Damage to files: of their bytes, their text, their values and their members."""

import copy
import csv
import io
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch

# Text that a reader may take for something else.
ODD_TEXTS = (
    "",
    "null",
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "1e-3",
    "true",
    "[",
    "{}",
    "*",
    "&a",
    "!!python/name:os.system",
    '"',
    "'",
    ",",
    ";",
    "\t",
    "\x00",
    "\ufeff",
    "\u202e",
    "é\u0301",
    "x" * 3000,
    "9" * 400,
    "2024-13-45",
    "<b>",
    "%s{0}",
    "../../x",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    1e300,
    float("nan"),
    "",
    "text",
    "é" * 300,
    [],
    {},
    [[]],
    {"a": 1},
    [None, 1, "x"],
    10**40,
)
DEPTH = 3000


# Bytes


def damage_bytes(content: bytes, rng: Random) -> bytes:
    """Flip, cut, insert, repeat, move or blank a part, once to three times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = len(data)
        start = rng.randint(0, size)
        end = min(size, start + rng.choice((1, 4, 64, size // 3 + 1)))
        kind = rng.randrange(9)
        if kind == 0 and size:
            for _ in range(rng.choice((1, 2, 8, 40))):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start:]
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = rng.randbytes(rng.choice((1, 4, 300)))
        elif kind == 4:
            data[start:start] = data[start:end]
        elif kind == 5:
            data[start:end] = bytes(end - start)
        elif kind == 6:
            part = data[start:end]
            del data[start:end]
            place = rng.randint(0, len(data))
            data[place:place] = part
        elif kind == 7 and size > 4:
            data[start : start + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        else:
            half = size // 2
            data = data[half:] + data[:half]
    return bytes(data)


# Text


def damage_text(content: bytes, rng: Random) -> bytes:
    """Replace, repeat, remove or exchange words and lines."""
    lines = content.decode(errors="replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        number = rng.randrange(len(lines))
        other = rng.randrange(len(lines))
        separator = rng.choice((",", ":", " "))
        words = lines[number].split(separator)
        place = rng.randrange(len(words))
        kind = rng.randrange(8)
        if kind in (0, 1):
            words[place] = rng.choice(ODD_TEXTS)
            lines[number] = separator.join(words)
        elif kind == 2:
            del words[place]
            lines[number] = separator.join(words)
        elif kind == 3:
            words[place:place] = words * rng.choice((1, 30))
            lines[number] = separator.join(words)
        elif kind == 4:
            lines[number], lines[other] = lines[other], lines[number]
        elif kind == 5:
            lines[number:number] = [lines[other]] * rng.choice((1, 50))
        elif kind == 6 and len(lines) > 1:
            del lines[number]
        else:
            lines[number] = rng.choice((" ", "  ", "\t", "- ", "'")) + lines[number]
    encoding = rng.choice(("utf-8",) * 12 + ("utf-16", "utf-8-sig", "cp1252", "cp037"))
    ending = rng.choice(("\n",) * 8 + ("\r\n", "\r"))
    return ending.join(lines).encode(encoding, errors="replace")


def damage_table(content: bytes, rng: Random) -> bytes:
    """Change cells, columns, rows and names of a table in text; it stays a table."""
    text = content.decode()
    separator = "\t" if "\t" in text else ","
    header, *rows = csv.reader(io.StringIO(text), delimiter=separator)
    for _ in range(rng.choice((1, 1, 2, 3))):
        column = rng.randrange(len(header))
        kind = rng.randrange(8)
        if kind == 0:
            header[column] = rng.choice((*ODD_TEXTS, "^y.*$", "[x]", "label ", header[0]))
        elif kind in (1, 2):
            for row in rng.choices(rows, k=rng.choice((1, 3, 30))):
                row[column] = rng.choice(ODD_TEXTS)
        elif kind == 3:
            odd = rng.choice(ODD_TEXTS)
            for row in rows:
                row[column] = odd
        elif kind == 4:
            make = rng.choice((str, hex, float, lambda i: f"{i}%", lambda i: f"{i % 24}:00"))
            for i, row in enumerate(rows):
                row[column] = str(make(i))
        elif kind == 5:
            rows = rows[: rng.choice((1, 2, 5, 20))]
        elif kind == 6:
            rows = rows * rng.choice((2, 10))
        else:
            rng.shuffle(rows)
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows([header, *rows])
    return out.getvalue().encode()


def deep(rng: Random) -> bytes:
    """Return text that is nested deeply."""
    opening, closing = rng.choice((("[", "]"), ('{"a": ', "}"), ("{a: ", "}"), ("- ", "")))
    return (opening * DEPTH + "1" + closing * DEPTH).encode()


# Values


def damage_value(value: Any, rng: Random) -> Any:
    """Replace, remove, rename or nest parts of plain values, once to three times."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _damage_part(value, rng)
    return value


def _damage_part(value: Any, rng: Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[rng.choice(("other", "", "a.b", 1))] = value.pop(key)
        else:
            value[key] = _damage_part(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            del value[place]
        elif kind == 1:
            value *= rng.choice((2, 20))
        else:
            value[place] = _damage_part(value[place], rng)
        return value
    if isinstance(value, torch.Tensor) and rng.random() < 0.7:
        return _damage_tensor(value, rng)
    return copy.deepcopy(rng.choice(ODD_VALUES))


def _damage_tensor(value: torch.Tensor, rng: Random) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return value.flatten()
    if kind == 1:
        return value[..., :0] if value.ndim else value.repeat(2)
    if kind == 2:
        return value.to(rng.choice((torch.int64, torch.float64, torch.bool, torch.complex64)))
    if kind == 3:
        return torch.full_like(value, 1)[None]
    if kind == 4:
        return value.to_sparse()
    return value.numpy().tolist()


# Archives and arrays


def damage_zip(content: bytes, rng: Random) -> bytes:
    """Damage, remove, rename or exchange members of a zip archive, with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    first, second = rng.choice(names), rng.choice(names)
    kind = rng.randrange(5)
    if kind == 0:
        members[first], members[second] = members[second], members[first]
    elif kind == 1:
        del members[first]
    elif kind == 2:
        members[rng.choice((f"{first}x", "../x", "/x", "x.npy"))] = members.pop(first)
    else:
        members[first] = damage_bytes(members[first], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return out.getvalue()


def damage_arrays(content: bytes, rng: Random) -> bytes:
    """Change types, shapes and names of the arrays in an ``.npz`` file."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(list(arrays))
    changes: list[Callable[[Any], Any]] = [
        lambda a: a.astype(rng.choice(("U5", "S3", "complex64", "bool", "float16", "M8[s]"))),
        lambda a: a.astype(rng.choice(("int8", "uint64", ">f8", "float128"))),
        lambda a: a.astype(object),
        lambda a: a[:0],
        lambda a: a[: len(a) // 2],
        lambda a: a.reshape(-1),
        lambda a: a[..., None, None],
        lambda a: np.asarray(a.flat[0]),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) % 7 == 0, np.nan, a),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) % 7 == 0, np.inf, a),
        lambda a: a * 1e308,
        lambda a: np.zeros(len(a), [("a", "i4"), ("b", "U3")]),
    ]
    if rng.random() < 0.2:
        arrays[rng.choice(("z", "x_train", "y_val", ""))] = arrays.pop(name)
    else:
        arrays[name] = rng.choice(changes)(arrays[name])
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()
