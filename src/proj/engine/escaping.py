"""Escape text of unknown origin for the place that it is written to.

Names of columns, classes, files and settings come from data and configs of other people. They may
hold line breaks, terminal control sequences and marks that reverse the reading direction.
"""

import re
import unicodedata
from typing import Any

# Characters without an own glyph: control characters, format characters such as bidirectional
# overrides, halves of surrogate pairs (file names that are not UTF-8), line and paragraph breaks.
HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")

# The joiners are part of ordinary words in Persian and the Indic scripts, and of emoji.
JOINERS = "\u200c\u200d"

# Spreadsheets compute a cell that begins with one of these, or with a wide form of it. They drop
# white space before it.
FORMULA = r"^[=+\-@\t\r\n＝＋－＠]"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def visible(text: str, keep: str = "") -> str:
    r"""Return a text on one line, with hidden characters as escape sequences.

    Args:
        text: the text.
        keep: hidden characters that stay, such as line breaks.

    >>> print(visible("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        hidden = unicodedata.category(char) in HIDDEN_CATEGORIES and char not in JOINERS + keep
        return char.encode("unicode_escape").decode() if hidden else char

    return re.sub(r"[^ -~]", escape, text)


def csv_cell(value: Any) -> Any:
    """Return a cell of a CSV file that a spreadsheet shows and does not compute.

    A text that would be a formula gets an apostrophe before it. Numbers stay as they are.
    """
    if isinstance(value, str) and re.match(FORMULA, value) and not re.match(NUMBER, value):
        return f"'{value}"
    return value
