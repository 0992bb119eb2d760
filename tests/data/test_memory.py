"""Data that do not fit in memory are refused before they are read."""

import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from proj.data.images import decode as decoding
from proj.data.images.decode import read_pixels, read_shape
from proj.data.tabular import array_source, memory
from proj.data.tabular.array_source import load_npz
from proj.data.tabular.datamodule import Tabular
from proj.data.tabular.memory import VARIABLE, check_memory, memory_limit
from proj.errors import UserError


def test_the_limit_is_the_smallest_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": ["MemTotal: 9000 kB", "MemAvailable: 5000 kB"],
        "/proc/self/cgroup": ["4:memory:/a/b", "1:cpu:/", "0::/c"],
        "/sys/fs/cgroup/c/memory.max": ["max"],
        "/sys/fs/cgroup/c/memory.current": ["1"],
        "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": ["4000000"],
        "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": ["3000000"],
        "/sys/fs/cgroup/memory/a/memory.stat": ["cache 5", "inactive_file 500000"],
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(str(path), []))
    assert memory_limit() == 1_500_000
    del files["/sys/fs/cgroup/memory/a/memory.limit_in_bytes"]
    assert memory_limit() == 5000 * 1024
    monkeypatch.setenv(VARIABLE, "0.5")
    assert memory_limit() == 500_000_000
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(UserError, match=f"{VARIABLE}: expected the GB"):
            memory_limit()


def test_the_machine_has_a_limit() -> None:
    assert 10_000_000 < memory_limit() < 2**60
    check_memory(1000, "x")


def test_arrays_are_measured_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 4 MB may hold 4 GB."""
    x, y = np.zeros((1000, 1000), np.float32), np.arange(1000)
    np.savez_compressed("d.npz", x=x, y=y)
    with zipfile.ZipFile("d.npz") as members:
        assert sum(member.file_size for member in members.infolist()) > 4_000_000
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "0.001")
        patch.setattr(np, "load", lambda *_, **__: pytest.fail("the file is read"))
        with pytest.raises(UserError, match=r"d.npz: expected data that need up to 0.0 GB of mem"):
            load_npz("d.npz")
        patch.delenv(VARIABLE)
        patch.setattr(array_source, "BOMB_SIZE", 10**6)
        with pytest.raises(UserError, match=f"expected arrays up to 200 times .*{VARIABLE}=NUM"):
            load_npz("d.npz")
    assert load_npz("d.npz").keys() == {"x", "y"}


def test_rows_of_a_table_are_counted_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred million rows of one value are a file of one megabyte."""
    rows = 2_000_000
    pl.LazyFrame({"i": [0]}).select(a=pl.repeat(1.5, rows), y=pl.int_range(rows) % 2).sink_parquet(
        "t.parquet"
    )
    assert Path("t.parquet").stat().st_size < 1_000_000
    monkeypatch.setenv(VARIABLE, "0.1")
    with pytest.raises(UserError, match=r"t.parquet: expected data .* got at least 0.2 GB"):
        Tabular("t.parquet", "y").prepare_data()


def test_an_image_with_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG file of some kilobytes may hold billions of pixels."""
    Image.new("L", (300, 200)).save("a.png")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 50_000)
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 100)
    for read in (lambda path: read_shape(path), lambda path: read_pixels(path, (1, 9, 9), True)):
        with pytest.raises(ValueError, match=f"more than 50,000 pixels; .*{VARIABLE}=NUMBER"):
            read(Path("a.png"))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 60_000)
    assert read_pixels(Path("a.png"), (1, 9, 9), True).shape == (1, 9, 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="more than 60,000 pixels"):
        read_shape(Path("a.png"))
