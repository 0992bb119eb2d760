"""Escape text of unknown origin for the place that it is written to.

Names of columns, classes, files and settings come from data and configs of other people. They may
hold line breaks, terminal control sequences and marks that reverse the reading direction.
"""

import unicodedata

# Characters without an own glyph: control characters, format characters such as bidirectional
# overrides, halves of surrogate pairs (file names that are not UTF-8), line and paragraph breaks.
HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")

# The joiners are part of ordinary words in Persian and the Indic scripts, and of emoji.
JOINERS = "\u200c\u200d"


def visible(text: str, keep: str = "") -> str:
    r"""Return a text on one line, with hidden characters as escape sequences.

    Args:
        text: the text.
        keep: hidden characters that stay, such as line breaks.

    >>> print(visible("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in HIDDEN_CATEGORIES and char not in JOINERS + keep
        else char
        for char in text
    )
