"""Environment of the worker processes."""

import pytest
import torch

from proj.engine.tuning.pool import Pool


@pytest.mark.parametrize(
    ("visible", "one_process_per_job", "expected"),
    [
        ("", False, ["0", "1", "0"]),
        ("4,6", False, ["4", "6", "4"]),
        ("4,6", True, ["4,6", "4,6", "4,6"]),
    ],
)
def test_workers_share_the_visible_gpus(
    visible: str, one_process_per_job: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker uses only GPUs of its parent process; a run on several devices uses all of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    pool = Pool(3, one_process_per_job)
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in pool.workers] == expected


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker has an equal share of the cores, unless the user sets the number of threads."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert {worker.environment["OMP_NUM_THREADS"] for worker in Pool(4, False).workers} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {worker.environment["OMP_NUM_THREADS"] for worker in Pool(4, False).workers} == {"3"}
