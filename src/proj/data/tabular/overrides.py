"""Kinds of columns that ``data.columns`` states instead of the inferred ones."""

from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict, get_args

from proj.errors import UserError

OverrideKind: TypeAlias = Literal["number", "category", "date", "text", "drop"]


class StatedColumn(TypedDict):
    """A kind with the form of its values, such as ``{kind: date, format: "%d/%m/%Y"}``.

    The format of numbers is ``1,234.5`` or ``1.234,5``. That of dates is one of Python's strptime,
    or for numbers seconds, milliseconds, microseconds or nanoseconds since 1970, or excel.
    """

    kind: OverrideKind
    format: NotRequired[str]


class Override(NamedTuple):
    """What data.columns says of a column; ``format`` empty means the inferred one."""

    kind: OverrideKind
    format: str = ""


def parse_overrides(columns: Any) -> dict[str, Override]:
    """Return ``data.columns`` as plain values.

    Raises UserError for a name that YAML read as another value, such as ``on`` for true.
    """
    overrides = {}
    for key, value in (columns or {}).items():
        if isinstance(key, bool) or key is None:
            raise UserError(
                f"data.columns: expected names of columns, got {str(key).lower()}, which is how "
                'YAML reads names such as on, yes and null; put the name in quotes: {"on": drop}.'
            )
        stated: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
        if stated.get("kind") not in get_args(OverrideKind) or set(stated) - {"kind", "format"}:
            raise UserError(
                f"data.columns: {key}: expected {', '.join(get_args(OverrideKind))}, or one of "
                f"them with a format, as in {{kind: date, format: '%d/%m/%Y'}}, got {value}."
            )
        overrides[str(key)] = Override(stated["kind"], str(stated.get("format", "")))
    return overrides
