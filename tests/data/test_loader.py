"""The loader against plain slicing: order, shards, and what a resumed epoch sees."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Trainer

from proj.data.arrays import ArrayDataModule
from proj.data.loader import ArrayLoader, nbytes, to_device
from proj.schema import Batch


def part(rows: int) -> Batch:
    return Batch(
        torch.arange(rows * 2.0).view(rows, 2), torch.arange(rows), torch.arange(rows) + 100
    )


def rows_of(loader: ArrayLoader) -> list[int]:
    return [int(r) - 100 for batch in loader for r in batch.row]


def test_batches_are_slices_of_the_part() -> None:
    batches = list(ArrayLoader(part(10), 4))
    assert [len(b.row) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b.x for b in batches]), part(10).x)
    assert all(torch.equal(b.y + 100, b.row) for b in batches)


def test_a_dict_of_tensors_is_sliced_together() -> None:
    x = {"numeric": torch.arange(5.0), "categorical": torch.arange(5)}
    batch = next(iter(ArrayLoader(Batch(x, None, torch.arange(5)), 2)))
    assert batch.y is None
    assert {k: v.tolist() for k, v in batch.x.items()} == {"numeric": [0, 1], "categorical": [0, 1]}


def test_the_order_is_a_function_of_seed_and_epoch_and_draws_from_no_global_generator() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = ArrayLoader(part(50), 8, seed=seed, shuffle=True, exact=False)
        loader.set_epoch(epoch)
        return rows_of(loader)

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
def test_evaluation_shards_see_each_row_once_in_equally_many_batches(rows: int, world: int) -> None:
    loaders = [ArrayLoader(part(rows), 2, rank=rank, world=world) for rank in range(world)]
    assert sorted(r for loader in loaders for r in rows_of(loader)) == list(range(rows))
    assert len({len(list(loader)) for loader in loaders}) == 1
    assert all(len(loader) == len(list(loader)) >= 1 for loader in loaders)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "world"), [(8, 3), (9, 3), (10, 4), (7, 2)])
def test_training_shards_are_equal_and_leave_out_other_rows_each_epoch(
    rows: int, world: int, shuffle: bool
) -> None:
    left_out = []
    for epoch in range(6):
        seen: list[int] = []
        for rank in range(world):
            loader = ArrayLoader(
                part(rows), 2, shuffle=shuffle, exact=False, rank=rank, world=world
            )
            loader.set_epoch(epoch)
            share = rows_of(loader)
            assert len(share) == rows // world
            seen += share
        assert len(set(seen)) == len(seen)
        left_out.append(set(range(rows)) - set(seen))
    assert all(len(rest) == rows % world < world for rest in left_out)
    if rows % world:
        assert any(a != b for a, b in pairwise(left_out))


def test_a_loaded_state_goes_on_where_the_epoch_was_left_and_only_there() -> None:
    loader = ArrayLoader(part(20), 3, seed=4, shuffle=True)
    loader.set_epoch(2)
    whole = [b.row.tolist() for b in loader]
    steps = iter(loader)
    seen = [next(steps).row.tolist() for _ in range(3)]
    resumed = ArrayLoader(part(20), 3, seed=4, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    assert seen + [b.row.tolist() for b in resumed] == whole
    assert len(list(resumed)) == len(whole)  # the next epoch is whole again
    other = ArrayLoader(part(20), 3, seed=4, shuffle=True)
    other.load_state_dict(loader.state_dict())
    other.set_epoch(3)
    assert len(list(other)) == len(whole)


def test_batches_are_taken_where_the_part_is() -> None:
    on_meta = to_device(part(10), torch.device("meta"))  # a device that has shapes and no values
    batches = list(ArrayLoader(on_meta, 4, shuffle=True, exact=False))
    assert [(b.x.shape, b.x.device.type, b.row.device.type) for b in batches] == [
        ((rows, 2), "meta", "meta") for rows in (4, 4, 2)
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parts_that_fit_lie_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_size_of_a_part_is_the_memory_its_tensors_take() -> None:
    table = Batch(
        {"numeric": torch.zeros(5, 3), "categorical": torch.zeros(5, 2, dtype=torch.int64)},
        None,
        torch.arange(5),
    )
    assert nbytes(part(5)) == 5 * (2 * 4 + 8 + 8)
    assert nbytes(table) == 5 * (3 * 4 + 2 * 8 + 8)
