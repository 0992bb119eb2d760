"""Self-contained HTML pages without requests, whose only script sorts tables.

They are readable on light and dark screens, by screen readers, and on paper.

The functions render the macros of ``templates/elements.html.j2``. They escape every text that is
not ``Html`` already.
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, NullFormatter
from PIL import Image

from proj.engine.secrets import printable
from proj.schema import Array

# Text that is HTML already, so that it is not escaped.
Html = Markup

# Sorts tables. The policy names its hash, so that a browser runs no other script.
SCRIPT = (Path(__file__).parent / "templates" / "sort.js").read_text(encoding="utf-8")
_HASH = b64encode(sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; img-src data:"
)
# Figures grow with the page up to this factor of their size.
MAX_GROWTH = 1.4

# The colour of text and axes in figures. `svg` replaces it by the colour of the page's text.
INK = "#010203"
# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "axes.grid": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.axisbelow": True,
}

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    # Marks that reverse the reading direction would rearrange the words of the page.
    finalize=lambda value: value if isinstance(value, Markup) else printable(str(value), "\n\t"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ELEMENTS: Any = _ENVIRONMENT.get_template("elements.html.j2").module


class Section(NamedTuple):
    """A heading and the elements below it."""

    title: str
    parts: Sequence[Html]


def page(title: str, lead: Html, sections: Iterable[Section]) -> str:
    """Return the complete document. Sections without parts are left out."""
    return _ENVIRONMENT.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        sections=[section for section in sections if section.parts],
        policy=Markup(POLICY),
        script=Markup(SCRIPT),
    )


def text(words: str) -> Html:
    """Return a paragraph."""
    return Html(_ELEMENTS.text(words))


def note(words: str) -> Html:
    """Return a highlighted paragraph that the reader should not miss."""
    return Html(_ELEMENTS.note(words))


def value(words: str) -> Html:
    """Return a paragraph in large letters: the one value that a reader looks for first."""
    return Html(_ELEMENTS.value(words))


def code(lines: str) -> Html:
    """Return preformatted text."""
    return Html(_ELEMENTS.code(lines))


def listed(lines: Iterable[str]) -> Html:
    """Return a bullet list."""
    return Html(_ELEMENTS.listed(lines))


def remarked(value: str, remark: str) -> Html:
    """Return a table cell's value, with a remark in small letters below it unless it is empty."""
    return Html(_ELEMENTS.remarked(value, remark))


def beside(*parts: Html) -> Html:
    """Return elements side by side, or one below the other where the page is narrow."""
    return Html(_ELEMENTS.beside(parts))


def folded(summary: str, *parts: Html) -> Html:
    """Return elements that are hidden until the reader opens them."""
    return Html(_ELEMENTS.folded(summary, parts))


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: int = 0,
    texts: int = 0,
) -> Html:
    """Return a table, which a click on a heading sorts.

    The first column holds the row headings. The last ``numbers`` columns before the last ``texts``
    columns are right-aligned.
    """
    end = len(header) - texts
    return Html(_ELEMENTS.table(caption, header, rows, range(end - numbers, end)))


def figures(*captioned: tuple[Figure, str], tight: bool = False) -> Html:
    """Return figures side by side, each with its caption; for ``tight`` see ``svg``."""
    drawings = [(svg(figure, caption, tight), caption) for figure, caption in captioned]
    return Html(_ELEMENTS.figures(drawings))


def image(pixels: Array, words: str) -> Html:
    """Return an embedded image of uint8 ``pixels`` [height, width] or [height, width, 3].

    ``words`` is the text alternative.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Html(_ELEMENTS.image(b64encode(buffer.getvalue()).decode(), words))


def svg(figure: Figure, label: str, tight: bool = False) -> Html:
    """Return a figure as an ``<svg>`` element in the colour and font of the page.

    The label makes the element's ids differ from those of other figures. ``tight`` fits the area
    to everything that is drawn, so that no label of a figure with axes at fixed places is cut.
    """
    buffer = io.StringIO()
    _write_powers_as_numbers(figure)
    with style():
        mpl.rcParams["svg.hashsalt"] = label
        figure.savefig(
            buffer,
            format="svg",
            dpi=150,
            bbox_inches="tight" if tight else None,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    drawing = printable(buffer.getvalue(), keep="\n")
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    # Nothing refers to the ids of groups, and they would occur in several figures.
    drawing = re.sub(r' id="(?!C\d)[\w.]+_\d+"', "", drawing)
    width = f"max-width: {MAX_GROWTH * 96 * figure.get_figwidth():.0f}px"
    attributes = f'role="img" style="{width}" aria-label="{escape(printable(label))}"'
    return Html(drawing.replace("<svg", f"<svg {attributes}", 1))


def _write_powers_as_numbers(figure: Figure) -> None:
    """Label logarithmic axes 0.01 instead of with markup: names in figures are never markup."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())


def pixels(figure: Figure) -> Array:
    """Return a figure on a white background as uint8 [height, width, 3]."""
    _write_powers_as_numbers(figure)
    with style():
        figure.set(facecolor="white", dpi=110)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of our figures, whatever the user's own matplotlib settings are."""
    with mpl.rc_context(), catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        # The browser shows the page in its own fonts, which have the glyph.
        filterwarnings("ignore", "Glyph .* missing from font")
        yield
