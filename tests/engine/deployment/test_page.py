"""The page of the server in a real browser: a form of a table, a picture, faults, an API key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import proj
from engine.deployment.conftest import RUN
from engine.deployment.test_serve import Client, readable_rows, serve

__all__ = ["serve"]


@pytest.mark.long
@pytest.mark.usefixtures("table_bundle")
def test_the_form_of_a_table_in_chromium(serve: Callable[..., Client], browser: Any) -> None:
    """A person fills in a row, sees the answer of the run, and what is wrong with a value."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    outside: list[str] = []
    client = serve()
    root = f"http://127.0.0.1:{client.port}/"
    page.on("request", lambda request: request.url.startswith(root) or outside.append(request.url))
    page.goto(root)
    page.get_by_role("button", name="Predict").click()  # The row of the example.
    page.locator("output h2").wait_for()
    row = readable_rows().head(1)
    expected = proj.load(RUN).predict(row)
    for name, value in row.drop(set(row.columns) - set(fields(page))).row(0, named=True).items():
        field = page.locator(f"[name='{name}']")
        if field.evaluate("element => element.tagName") == "SELECT":
            field.select_option(label=value or "(missing)")
        else:
            field.fill(value or "")
    page.get_by_role("button", name="Predict").click()
    page.wait_for_load_state("networkidle")
    label = expected["prediction"][0]
    assert page.locator("output h2").text_content() == label
    shown = page.locator("output").inner_text()
    assert f"{100 * expected[f'probability_{label}'][0]:.1f} %" in shown
    page.locator("[name='tenure']").fill("many")
    page.get_by_role("button", name="Predict").click()
    fault = page.locator("label", has=page.locator("[name='tenure']")).locator(".fault")
    assert_text(fault, "expected a number, got 'many'")
    assert [error for error in errors if "422" not in error] == []
    assert outside == []


def fields(page: Any) -> list[str]:
    names: list[str] = page.locator("#fields [name]").evaluate_all("all => all.map(x => x.name)")
    return names


def assert_text(place: Any, text: str) -> None:
    """Wait until a place shows a text."""
    place.filter(has_text=text).wait_for(timeout=10_000)


@pytest.mark.long
@pytest.mark.usefixtures("image_bundle")
def test_a_picture_in_chromium(serve: Callable[..., Client], browser: Any) -> None:
    """A person chooses an image, with the API key, and sees the answer of the run."""
    page, client = browser.new_page(), serve(SERVE_API_KEY="secret")
    page.goto(f"http://127.0.0.1:{client.port}/")
    file = sorted(Path("images").rglob("*.jpg"))[0]
    page.locator("input[type=file]").set_input_files(file)
    page.locator("#key input").wait_for()
    page.locator("#key input").fill("secret")
    page.get_by_role("button", name="Predict").click()
    page.locator("output h2").wait_for()
    expected = proj.load(RUN).predict([file])
    assert page.locator("output h2").text_content() == str(expected["prediction"][0])
    page.locator("input[type=file]").set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    assert_text(page.locator("#fault"), "cannot be read")
