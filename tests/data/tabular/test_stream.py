"""Parquet shards: each row once, the same order again, a bounded buffer, true statistics."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import proj
from conftest import Cli
from proj.data import Tabular
from proj.data.tabular import ParquetStream
from proj.data.tabular.columns import fit_columns
from proj.data.tabular.shards import Block, cut, gather, hold_out, list_shards
from proj.errors import UserError
from proj.schema import Batch

ROWS = (700, 1, 333, 966)


def table(seed: int = 0, rows: int = sum(ROWS)) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    size = draw.normal(size=rows)
    kind = draw.choice(["a", "b", "c"], rows)
    return pl.DataFrame(
        {
            "id": [f"row {i}" for i in range(rows)],
            "size": np.where(draw.random(rows) < 0.02, np.nan, size).astype(np.float32),
            "weight": draw.integers(0, 1000, rows),
            "kind": kind,
            "price": 3 * size + (kind == "a") + draw.normal(size=rows) / 10,
            "sold": np.where(size + (kind == "a") > 0.4, "yes", "no"),
        }
    )


def write(frame: pl.DataFrame, folder: Path, rows: tuple[int, ...] = ROWS) -> Path:
    """Write shards with small row groups; one has no rows."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = np.cumsum([0, *rows])
    for i, (start, count) in enumerate(zip(starts, rows, strict=False)):
        frame[int(start) : int(start) + count].write_parquet(
            folder / f"part-{i}.parquet", row_group_size=100
        )
    frame[:0].write_parquet(folder / "part-9.parquet")
    return folder


@pytest.fixture
def shards(work: Path) -> Path:
    return write(table(), work / "shards")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ParquetStream:
    """A stream of shards, with loaders of its own for each test."""
    return stream(write(table(), tmp_path_factory.mktemp("stream") / "shards"))


def stream(path: Path, **options: Any) -> ParquetStream:
    values: dict[str, Any] = {"batch_size": 32, "buffer_rows": 150, "target": "sold", **options}
    data = ParquetStream(str(path), **values)
    data.seed = 7
    data.setup("fit")
    return data


def batches(loader: Any, rank: int = 0, world: int = 1, epoch: int = 0) -> list[Batch]:
    loader.rank, loader.world = rank, world
    loader.set_epoch(epoch)
    found = list(loader)
    assert len(found) == len(loader)
    return found


def row_numbers(found: list[Batch]) -> list[int]:
    return [int(row) for batch in found for row in batch.row]


@pytest.mark.parametrize("world", [1, 3])
def test_processes_share_the_rows_of_an_epoch(data: ParquetStream, world: int) -> None:
    """No row twice, equal numbers of batches, and less than one row per process is left out."""
    expected = {row for block in data.blocks["train"] for row in range(block.first, end(block))}
    left_out = []
    for epoch in range(3):
        loaders = [batches(data.train_dataloader(), rank, world, epoch) for rank in range(world)]
        sizes = {tuple(len(batch.row) for batch in found) for found in loaders}
        assert len(sizes) == 1
        rows = [row for found in loaders for row in row_numbers(found)]
        assert len(set(rows)) == len(rows)
        assert set(rows) <= expected
        assert len(expected) - len(rows) == len(expected) % world
        left_out.append(expected - set(rows))
    assert world < 3 or not len(expected) % world or left_out[0] != left_out[1]


@pytest.mark.parametrize("world", [1, 3, 40])
@pytest.mark.parametrize("split", ["val", "test"])
def test_processes_evaluate_each_row_once(data: ParquetStream, world: int, split: str) -> None:
    """Also if the share of the last process has fewer rows, or none."""
    loaders = [
        batches(getattr(data, f"{split}_dataloader")(), rank, world) for rank in range(world)
    ]
    assert len({len(found) for found in loaders}) == 1
    rows = [row for found in loaders for row in row_numbers(found)]
    assert rows == [row for block in data.blocks[split] for row in range(block.first, end(block))]
    assert all(batch.x["numeric"].shape[1] == 3 for found in loaders for batch in found)


def end(block: Block) -> int:
    return block.first + block.rows


def test_splits_are_disjoint_and_complete(shards: Path) -> None:
    data = stream(shards, val_fraction=0.2, test_fraction=0.1)
    rows = [
        row
        for name in ("train", "val", "test")
        for block in data.blocks[name]
        for row in range(block.first, end(block))
    ]
    assert sorted(rows) == list(range(sum(ROWS)))
    assert data.rows("val") == pytest.approx(0.2 * sum(ROWS), abs=21)
    assert data.rows("test") == pytest.approx(0.1 * sum(ROWS), abs=21)


def test_an_epoch_is_a_function_of_seed_and_epoch(data: ParquetStream, shards: Path) -> None:
    """The order changes with the epoch; neighbors are separated, within and between blocks."""
    again = stream(shards)
    first = row_numbers(batches(data.train_dataloader(), epoch=1))
    assert first == row_numbers(batches(again.train_dataloader(), epoch=1))
    assert first != row_numbers(batches(data.train_dataloader(), epoch=2))
    assert (np.abs(np.diff(first)) == 1).mean() < 0.05
    assert np.abs(np.diff(first)).mean() > 100
    again.seed = 8
    assert first != row_numbers(batches(again.train_dataloader(), epoch=1))


def test_batches_hold_the_values_of_the_source(data: ParquetStream) -> None:
    """Inputs and targets are those that a table in memory would give for the same rows."""
    source = table()
    assert data.schema is not None
    for batch in batches(data.train_dataloader()):
        rows = source[batch.row.numpy()]
        expected = Tabular.encode(rows, data.schema)
        assert isinstance(batch.x, dict)
        for kind, values in expected.items():
            torch.testing.assert_close(batch.x[kind], values, rtol=0, atol=0, equal_nan=True)
        assert batch.y is not None
        assert [data.schema.classes[i] for i in batch.y] == rows["sold"].to_list()


@pytest.mark.parametrize("position", [1, 4, 5, 13])
def test_a_resumed_epoch_has_the_remaining_batches(data: ParquetStream, position: int) -> None:
    """A resume reads only what follows; the bits are those of the undisturbed epoch."""
    whole = batches(data.train_dataloader(), epoch=2)
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 2, "position": position})
    loader.set_epoch(2)
    rest = list(loader)
    assert len(rest) == len(whole) - position
    for batch, expected in zip(rest, whole[position:], strict=True):
        assert isinstance(batch, Batch)
        assert batch.row.tolist() == expected.row.tolist()
        torch.testing.assert_close(batch.x, expected.x, rtol=0, atol=0, equal_nan=True)
    assert loader.state_dict() == {"epoch": 2, "position": len(whole)}


def test_executions_hold_the_batches_of_single_steps(data: ParquetStream) -> None:
    single = batches(data.train_dataloader())
    loader = data.train_dataloader()
    loader.steps = 5
    cut_up = [batch for execution in loader for batch in execution.batches()]  # type: ignore[union-attr]
    assert [batch.row.tolist() for batch in cut_up] == [batch.row.tolist() for batch in single]


def test_the_buffer_is_bounded(shards: Path) -> None:
    """At most two buffers of rows are read and not yet handed out, at any time."""
    data = stream(shards, buffer_rows=200)
    loader: Any = data.train_dataloader()
    read, read_block = [0], loader.read

    def count(block: Block) -> Batch:
        read[0] += block.count
        return read_block(block)

    loader.read = count
    held, given = [], 0
    for batch in loader:
        held.append(read[0] - given)
        given += len(batch.row)
    assert given == data.rows("train") == read[0]
    assert max(held) <= 2 * 200
    assert given > 5 * max(held) / 2


def test_evaluation_holds_single_blocks(data: ParquetStream) -> None:
    loader: Any = data.test_dataloader()
    assert [len(window) for window in loader.windows()] == [1] * len(loader.blocks)


# Schema


def test_columns_are_fitted_on_a_sample_and_targets_on_all_rows(shards: Path) -> None:
    data = stream(shards, sample_rows=300, target="price", columns={"sold": "drop"})
    assert data.schema is not None
    rows = np.concatenate([np.arange(b.first, end(b)) for b in data.blocks["train"]])
    price = table()["price"].to_numpy()[rows]
    assert data.schema.target_mean == pytest.approx((price.mean(),), rel=1e-12)
    assert data.schema.target_std == pytest.approx((price.std(),), rel=1e-12)
    assert data.schema.rows == len(rows)
    # Of a block with fewer rows, fewer are taken.
    found = re.search(r"sample of (\d+) of (\d+) training rows", str(data.findings[0]))
    assert found
    assert 280 <= int(found[1]) <= 300
    assert int(found[2]) == len(rows)


def test_small_sources_are_fitted_on_all_training_rows(data: ParquetStream) -> None:
    source = table()
    assert data.schema is not None
    rows = np.concatenate([np.arange(b.first, end(b)) for b in data.blocks["train"]])
    train = source[rows].with_columns(pl.col("size").fill_nan(None))
    columns, _, _ = fit_columns(train.drop("sold"), {}, {})
    assert data.schema.columns == columns
    counts = dict(train["sold"].value_counts().rows())
    assert data.schema.classes == ("no", "yes")
    assert data.schema.class_counts == (counts["no"], counts["yes"])
    assert not any("sample" in str(finding) for finding in data.findings)


def test_amounts_are_not_taken_for_classes(work: Path) -> None:
    """The sampled rows have few different numbers, and all rows have many."""
    frame = table(rows=30_000).with_columns(
        y=pl.when(pl.int_range(pl.len()) < 29_900).then(1).otherwise(pl.int_range(pl.len()))
    )
    write(frame, work / "many", (30_000,))
    data = stream(work / "many", target="y")
    assert data.schema is not None
    assert data.schema.task == "regression"


def test_labels_are_counted(work: Path) -> None:
    frame = table().with_columns(
        a=(pl.col("price") > 0).cast(pl.Int8), b=(pl.col("weight") > 500).cast(pl.Int8)
    )
    data = stream(write(frame, work / "labels"), target=["a", "b"])
    assert data.schema is not None
    rows = np.concatenate([np.arange(b.first, end(b)) for b in data.blocks["train"]])
    assert data.schema.task == "multilabel"
    assert data.schema.class_counts == tuple(frame[rows].select("a", "b").sum().row(0))


def test_rows_without_a_target_are_left_out(work: Path) -> None:
    frame = table().with_columns(
        sold=pl.when(pl.int_range(pl.len()) % 9 == 0).then(None).otherwise("sold")
    )
    data = stream(write(frame, work / "gaps"))
    missing = frame["sold"].null_count()
    assert f"{missing} of {sum(ROWS)} rows" in str(data.findings[0])
    kept = set(frame.with_row_index().drop_nulls("sold")["index"])
    found = {
        row
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        for row in row_numbers(list(loader))  # type: ignore[arg-type]
    }
    assert found == kept
    assert sum(data.rows(split) for split in ("train", "val", "test")) == len(kept)


def test_splits_of_their_own_shards(shards: Path, work: Path) -> None:
    val, test = table(1, 150), table(2, 90)
    write(val, work / "val", (150,))
    write(test, work / "test", (50, 40))
    data = stream(shards, val_path=str(work / "val"), test_path=str(work / "test/*.parquet"))
    assert [data.rows(split) for split in ("train", "val", "test")] == [sum(ROWS), 150, 90]
    loader: Any = data.test_dataloader()
    assert row_numbers(list(loader)) == list(range(90))
    columns = data.source_columns(["id"], np.array([71, 3]), "test")
    assert columns["id"].to_list() == ["row 71", "row 3"]


def test_the_fingerprint_tells_changed_shards(data: ParquetStream, work: Path) -> None:
    """Resume compares it: a target, a row or a column more is another source; a place is not."""
    assert stream(write(table(), work / "moved")).fingerprint == data.fingerprint
    first = pl.int_range(pl.len()) == 0
    other = table().with_columns(
        sold=pl.when(first)
        .then(pl.when(pl.col("sold") == "yes").then(pl.lit("no")).otherwise(pl.lit("yes")))
        .otherwise("sold")
    )
    changes = [other, table().with_columns(more=pl.lit(1)), table(rows=sum(ROWS) - 1)]
    for i, frame in enumerate(changes):
        assert stream(write(frame, work / str(i))).fingerprint != data.fingerprint


# Errors


def changed(**columns: pl.Expr) -> pl.DataFrame:
    return table(rows=50).with_columns(**columns)


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (table(rows=50).drop("kind"), {}, "with others: kind"),
        (changed(size=pl.lit("big")), {}, "with others: size"),
        (
            changed(sold=pl.lit("maybe")),
            {"val_path": "val.parquet"},
            "class maybe has no training rows",
        ),
        (changed(), {"target": "sould"}, "data.target: "),
        (changed(), {"columns": {"kinds": "drop"}}, "data.columns: "),
        (table(rows=50).drop("kind"), {"val_path": "val.parquet"}, "data.val_path: "),
        (changed(), {"batch_size": 3000}, "data.batch_size: expected at most"),
        (changed(), {"batch_size": 0}, "data.batch_size: expected a number from 1"),
        (changed(), {"buffer_rows": 0}, "data.buffer_rows: expected"),
        (changed(), {"val_fraction": 0.7, "test_fraction": 0.3}, "data.val_fraction and"),
        (changed(), {"task": "binary", "target": "kind"}, "expected two classes"),
        (changed(size=pl.lit(np.inf)), {}, "expected finite numbers, got an infinite one in row 0"),
    ],
)
def test_wrong_shards_and_options(
    shards: Path, other: pl.DataFrame, options: dict[str, Any], message: str
) -> None:
    other.write_parquet(shards / "part-7.parquet")
    if "val_path" in options:
        (shards / "part-7.parquet").rename("val.parquet")
    with pytest.raises(UserError, match=re.escape(message)):
        list(stream(shards, **options).train_dataloader())


def test_buffers_larger_than_memory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJ_MEMORY_GB", "1e-6")
    with pytest.raises(UserError, match=r"data\.buffer_rows: expected buffers of up to"):
        stream(shards).train_dataloader()


def test_shards_that_change_during_training(shards: Path) -> None:
    """The rows of an epoch would not be those that were counted."""
    data = stream(shards)
    no_targets = table()[:700].with_columns(sold=pl.lit(None, pl.String))
    no_targets.write_parquet(shards / "part-0.parquet")
    with pytest.raises(UserError, match="as before, got 0; start again"):
        list(data.train_dataloader())
    no_targets[:3].write_parquet(shards / "part-0.parquet")
    with pytest.raises(UserError, match="expected rows up to"):
        list(data.train_dataloader())


def test_init_says_how_to_read_a_folder(cli: Cli, shards: Path) -> None:
    """It was taken for a folder of images."""
    message = cli("init", "shards", "--target", "sold", code=2)
    assert "'shards/*.parquet', or write an experiment with ParquetStream" in message


def test_missing_and_damaged_shards(work: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: expected Parquet files"):
        stream(work / "nothing")
    (work / "bad").mkdir()
    (work / "bad/a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="expected a Parquet file that can be read"):
        stream(work / "bad")


def test_folders_named_by_values_are_reported(work: Path) -> None:
    write(table(), work / "shards/year=2024", ROWS[:1])
    write(table(), work / "shards/year=2025", ROWS[:1])
    (work / "shards/_temporary").mkdir()
    (work / "shards/_temporary/a.parquet").write_bytes(b"unfinished")
    data = stream(work / "shards")
    assert sum(map(data.rows, ("train", "val", "test"))) == 2 * ROWS[0]
    assert "named by values of year" in str(data.findings[0])


# Parts


def test_blocks_cover_the_shards(shards: Path) -> None:
    found = list_shards(str(shards), "data.path")
    assert [shard.rows for shard in found] == list(ROWS)
    blocks = cut(found)
    assert [block.first for block in blocks] == np.cumsum([0, *(b.rows for b in blocks)]).tolist()[
        :-1
    ]
    held_out = hold_out(blocks, 0.1, 0.1, seed=1)
    assert sorted(i for part in held_out.values() for i in part) == list(range(len(blocks)))
    wanted = np.array([1999, 0, 701, 0])
    assert gather(blocks, ["id"], wanted)["id"].to_list() == [f"row {i}" for i in wanted]


# Commands

CONFIG = """
seed_everything: 1
model: {class_path: BinaryClassifier, init_args: {net: {class_path: MLP, init_args: {hidden: [8]}}}}
data:
  class_path: ParquetStream
  init_args: {path: shards, target: sold, batch_size: 64, buffer_rows: 200}
"""


@pytest.mark.long
def test_commands(cli: Cli, shards: Path, work: Path) -> None:
    """fit, test and predict see each row of the splits once; others say why they do not work."""
    config = work / "stream.yaml"
    config.write_text(CONFIG)
    cli("fit", "--config", config, "--trainer.max_epochs", 1)
    cli("test", "--run", "version_0")
    data = stream(shards)
    run = work / "lightning_logs/version_0"
    tested = pl.read_parquet(run / "test/predictions.parquet")
    rows = [row for block in data.blocks["test"] for row in range(block.first, end(block))]
    assert tested["row"].to_list() == rows
    assert tested["target"].to_list() == table()[rows]["sold"].to_list()
    write(table(3, 75).drop("sold"), work / "new", (50, 25))
    cli("predict", "--run", "version_0", "--data.predict_path", "new", "--keep", "id")
    predicted = pl.read_parquet(run / "predict/predictions.parquet")
    assert predicted["id"].to_list() == [f"row {i}" for i in range(75)]
    known = proj.load("version_0").predict(pl.read_parquet(work / "new/*.parquet"))
    assert known["prediction"].to_list() == predicted["prediction"].to_list()
    assert "which streams its rows" in cli("baseline", "--run", "version_0", code=2)
    assert "data: expected splits that fit" in cli("eject", "version_0", code=2)
