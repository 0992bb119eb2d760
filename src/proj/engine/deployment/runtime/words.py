"""Words of texts, as they are found in the training data."""

import re

# Letters and digits by their code points, as in training. Chinese and Japanese characters, which no
# spaces separate, and emoji are words of their own.
_LETTERS = "0-9a-z\u00c0-\u167f\u1681-\u1fff\u2c00-\u2dff\ua000-\ud7ff\uf900-\ufdff"
_SIGNS = "\u2600-\u27bf\u3040-\u30ff\u3400-\u9fff\U0001f300-\U0001faff"
_WORD = re.compile(f"[{_LETTERS}]+(?:'[{_LETTERS}]+)*|[{_SIGNS}]")


def normalize(text: str) -> str:
    """Return a text as its words in lower case, with one space before and after each."""
    return f" {' '.join(_WORD.findall(text.lower().replace('’', chr(39))))} "
