"""Requests of any content are answered with 200, or with 4xx and a message; never with an error."""

import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.deployment.conftest import BUNDLE
from engine.deployment.test_serve import readable_rows
from proj.engine.deployment.runtime import load
from proj.engine.deployment.runtime.server.bodies import READERS, Request
from proj.engine.deployment.runtime.server.worker import Worker

# Pillow warns of large and damaged images, which are refused or read as far as they go.
pytestmark = pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning:PIL.*"
)
SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
MANY = pytest.param(5_000, marks=pytest.mark.slow)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -(2**63), 1e308, "1e999", "\ud800", "€ 1,200", "3.2.2020", "inf"])
)
VALUES = st.recursive(SCALARS, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5)


@cache
def worker_of(bundle: Path) -> Worker:
    return Worker(load(bundle), max_rows=100)


def answers(requests: list[Request]) -> Iterator[tuple[int, Any]]:
    """Answer requests, together and apart, and check what every reply must be."""
    worker = worker_of(BUNDLE.absolute())
    replies = worker.answer(requests)
    for request, (status, content) in zip(requests, replies, strict=True):
        assert status == 200 or 400 <= status < 500
        reply = json.loads(content)
        if status == 200:
            json.dumps(reply, allow_nan=False)
        else:
            assert reply["detail"][0]["msg"]
        assert worker.answer([request])[0][0] == status
        yield status, reply


@pytest.mark.usefixtures("table_bundle")
@pytest.mark.parametrize("examples", [100, MANY])
def test_any_rows_of_a_table(examples: int) -> None:
    """Values of every type, lacking and additional columns, and rows that are none."""
    good = readable_rows().to_dicts()[0]
    row = st.fixed_dictionaries({}, optional=dict.fromkeys(good, SCALARS)).map(
        lambda changed: {**good, **changed}
    )
    rows = st.lists(row | st.dictionaries(st.sampled_from(list(good)) | st.text(), VALUES) | VALUES)

    @settings(SETTINGS, max_examples=examples)
    @given(st.lists(rows | VALUES, min_size=1, max_size=4), st.booleans())
    def check(bodies: list[Any], wrapped: bool) -> None:
        requests = [
            Request("json", [json.dumps({"rows": body} if wrapped else body).encode()])
            for body in bodies
        ]
        list(answers(requests))

    check()


@pytest.mark.parametrize("fixture", ["table_bundle", "image_bundle"])
@pytest.mark.parametrize("examples", [50, MANY])
def test_any_bytes(request: pytest.FixtureRequest, fixture: str, examples: int) -> None:
    """Damaged bodies of each form, and bytes that are none."""
    request.getfixturevalue(fixture)
    if fixture == "table_bundle":
        file = io.BytesIO()
        readable_rows().write_parquet(file)
        good = [file.getvalue(), readable_rows().write_csv().encode()]
        good.append(json.dumps(readable_rows().to_dicts()).encode())
    else:
        good = [path.read_bytes() for path in sorted(Path("images").rglob("*.*"))[:4]]

    @settings(SETTINGS, max_examples=examples)
    @given(st.sampled_from(sorted(READERS)), st.sampled_from(good), st.data())
    def check(form: str, content: bytes, data: st.DataObject) -> None:
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(0, 4))):
            start = data.draw(st.integers(0, len(changed)))
            end = start + data.draw(st.integers(0, 8))
            changed[start:end] = data.draw(st.binary(max_size=8))
        list(answers([Request(form, [bytes(changed)])]))

    check()


@pytest.mark.usefixtures("table_bundle")
def test_requests_of_a_batch_do_not_touch_each_other() -> None:
    """The reply to a request is the same in any batch."""
    rows = readable_rows().to_dicts()
    requests = [Request("json", [json.dumps(rows[i : i + 3]).encode()]) for i in range(5)]
    requests.insert(2, Request("json", [b"{"]))
    requests.append(Request("json", [b"[]"]))
    together = [reply for _, reply in answers(requests)]
    expected = load(BUNDLE).predict(pl.DataFrame(rows))
    for i, reply in zip((0, 1, None, 2, 3, 4, None), together, strict=True):
        if i is not None:
            labels = [answer["prediction"] for answer in reply["predictions"]]
            assert labels == expected["prediction"][i : i + 3].tolist()
            probabilities = [answer["probability_yes"] for answer in reply["predictions"]]
            np.testing.assert_allclose(probabilities, expected["probability_yes"][i : i + 3], 1e-5)
    assert together[2]["detail"][0]["msg"].startswith("expected JSON")
    assert together[6] == {"predictions": []}
