"""Messages stay short and ordinary for unusual values."""

from proj.errors import MAX_QUOTED, nearest, quoted


def test_a_long_value_is_cut() -> None:
    """A cell of a million characters would fill the terminal."""
    assert quoted("short") == "'short'"
    assert len(quoted("x" * 10**6)) == MAX_QUOTED


def test_a_name_may_be_a_number() -> None:
    """A key of YAML may be one."""
    assert nearest(1, ["lr"]) == " Valid: lr."  # type: ignore[arg-type]
