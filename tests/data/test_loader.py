"""The loader against plain slicing: order, shards, and resumed epochs."""

from itertools import pairwise

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer

from proj.data.arrays import ArrayDataModule
from proj.data.loader import ArrayLoader, nbytes
from proj.schema import Batch


def make_split(rows: int) -> Batch:
    return Batch(
        torch.arange(rows * 2.0).view(rows, 2), torch.arange(rows), torch.arange(rows) + 100
    )


def row_numbers(loader: ArrayLoader) -> list[int]:
    return [int(r) - 100 for batch in loader for r in batch.row]


def test_batches_are_slices_of_the_split() -> None:
    """Inputs, targets and row numbers must stay aligned."""
    batches = list(ArrayLoader(make_split(10), 4))
    assert [len(b.row) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b.x for b in batches]), make_split(10).x)
    assert all(torch.equal(b.y + 100, b.row) for b in batches)


def test_a_dict_of_tensors_is_sliced_together() -> None:
    """Numbers and categories of a table must stay aligned."""
    x = {"numeric": torch.arange(5.0), "categorical": torch.arange(5)}
    batch = next(iter(ArrayLoader(Batch(x, None, torch.arange(5)), 2)))
    assert batch.y is None
    assert {k: v.tolist() for k, v in batch.x.items()} == {"numeric": [0, 1], "categorical": [0, 1]}


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    """A draw from the global generator would change dropout masks."""

    def order(seed: int, epoch: int) -> list[int]:
        loader = ArrayLoader(make_split(50), 8, seed=seed, shuffle=True, exact=False)
        loader.set_epoch(epoch)
        return row_numbers(loader)

    state = torch.get_rng_state()
    first = order(1, 0)
    torch.rand(3)
    assert order(1, 0) == first
    assert sorted(first) == list(range(50))
    assert len({tuple(order(s, e)) for s in (1, 2) for e in (0, 1)}) == 4
    torch.set_rng_state(state)
    order(1, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 13])
def test_evaluation_shards_see_each_row_once(rows: int, world: int) -> None:
    """Unequal numbers of batches would block a collective operation."""
    loaders = [ArrayLoader(make_split(rows), 2, rank=rank, world=world) for rank in range(world)]
    assert sorted(r for loader in loaders for r in row_numbers(loader)) == list(range(rows))
    assert len({len(list(loader)) for loader in loaders}) == 1
    assert all(len(loader) == len(list(loader)) >= 1 for loader in loaders)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "world"), [(8, 3), (9, 3), (10, 4), (7, 2)])
def test_training_shards_are_equal_and_leave_out_different_rows(
    rows: int, world: int, shuffle: bool
) -> None:
    """A row that is left out in each epoch would never be trained on."""
    left_out = []
    for epoch in range(6):
        seen: list[int] = []
        for rank in range(world):
            loader = ArrayLoader(
                make_split(rows), 2, shuffle=shuffle, exact=False, rank=rank, world=world
            )
            loader.set_epoch(epoch)
            share = row_numbers(loader)
            assert len(share) == rows // world
            seen += share
        assert len(set(seen)) == len(seen)
        left_out.append(set(range(rows)) - set(seen))
    assert all(len(rest) == rows % world < world for rest in left_out)
    if rows % world:
        assert any(a != b for a, b in pairwise(left_out))


def test_a_loaded_state_continues_its_epoch_only() -> None:
    """A resumed run must see the rest of its epoch, and later epochs in full."""
    loader = ArrayLoader(make_split(20), 3, seed=4, shuffle=True)
    loader.set_epoch(2)
    complete = [b.row.tolist() for b in loader]
    steps = iter(loader)
    seen = [next(steps).row.tolist() for _ in range(3)]
    resumed = ArrayLoader(make_split(20), 3, seed=4, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    assert seen + [b.row.tolist() for b in resumed] == complete
    assert len(list(resumed)) == len(complete)  # the next epoch is whole again
    other = ArrayLoader(make_split(20), 3, seed=4, shuffle=True)
    other.load_state_dict(loader.state_dict())
    other.set_epoch(3)
    assert len(list(other)) == len(complete)


def test_batches_are_taken_on_the_device_of_the_split() -> None:
    """A copy to the CPU and back would be slow."""
    on_meta = move_data_to_device(
        make_split(10), torch.device("meta")
    )  # a device that has shapes and no values
    batches = list(ArrayLoader(on_meta, 4, shuffle=True, exact=False))
    assert [(b.x.shape, b.x.device.type, b.row.device.type) for b in batches] == [
        ((rows, 2), "meta", "meta") for rows in (4, 4, 2)
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_splits_that_fit_are_kept_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split that is too large must stay in the main memory."""
    data = ArrayDataModule(path="digits")
    data.trainer = Trainer(accelerator="gpu", devices=1, logger=False)
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x.device.type == "cuda"
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (nbytes(data.splits["val"]) * 4 - 1, 0)
    )
    loader = data.val_dataloader()
    assert isinstance(loader, ArrayLoader)
    assert loader.pin_memory
    assert next(iter(loader)).x.device.type == "cpu"


def test_the_size_of_a_split_is_the_memory_of_its_tensors() -> None:
    """The size decides what is kept on a GPU."""
    table = Batch(
        {"numeric": torch.zeros(5, 3), "categorical": torch.zeros(5, 2, dtype=torch.int64)},
        None,
        torch.arange(5),
    )
    assert nbytes(make_split(5)) == 5 * (2 * 4 + 8 + 8)
    assert nbytes(table) == 5 * (3 * 4 + 2 * 8 + 8)


def test_the_order_of_an_epoch_takes_four_bytes_a_row_and_has_the_bits_of_int64() -> None:
    """Old checkpoints resume within an epoch, so the order must not change with its type."""
    order = ArrayLoader(make_split(1000), 8, seed=3, shuffle=True)._order()
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    assert order.nbytes == 4000
    assert order.tolist() == torch.randperm(1000, generator=generator).tolist()
