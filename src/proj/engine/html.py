"""One HTML file that needs nothing else: no request, no script; light and dark, for screens, readers and paper."""

import io
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

CSS = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --link: #0060a8; }
@media (prefers-color-scheme: dark) { :root { --link: #7cc4ff; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); }
.skip { position: absolute; left: -99rem; }
.skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
small { opacity: .8; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; flex: 0 1 auto; }
figcaption { max-width: 34rem; }
svg { max-width: 100%; height: auto; }
td img { width: 6rem; height: 6rem; object-fit: contain; object-position: left; image-rendering: pixelated; }
svg text { font-family: system-ui, sans-serif !important; }
.note { border-left: .3rem solid #e69f00; background: var(--soft); padding: .5rem 1rem; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; }
@media print { nav, .skip { display: none; } body { max-width: none; } figure, tr { break-inside: avoid; }
  pre { white-space: pre-wrap; } .scroll { overflow: visible; } }
"""
INK = "#010203"  # of text and axes in figures; the page makes it the colour of its own text
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#999999",
)  # Okabe and Ito (2008)
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
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@contextmanager
def style() -> Iterator[None]:
    """How figures look, whatever the user's own settings are."""
    with mpl.rc_context(), catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # the page is shown in the browser's fonts
        yield


class Html(str):
    """Text that is HTML already; any other is escaped."""


class Section(NamedTuple):
    title: str
    parts: Sequence[Html]


def page(title: str, lead: Html, sections: Iterable[Section]) -> str:
    """The whole document; sections without a part are left out."""
    kept = [section for section in sections if section.parts]
    links = "".join(
        f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(kept)
    )
    body = "\n".join(
        f'<section aria-labelledby="s{i}"><h2 id="s{i}" tabindex="-1">{escape(section.title)}</h2>\n'
        + "\n".join(section.parts)
        + "</section>"
        for i, section in enumerate(kept)
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<link rel="icon" href="data:,">\n'
        f'<style>{CSS}</style>\n</head>\n<body>\n<a class="skip" href="#main">Skip to the content</a>\n'
        f"<header><h1>{escape(title)}</h1>\n{lead}</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main id="main">\n{body}\n</main>\n</body>\n</html>\n'
    )


def text(words: str) -> Html:
    return Html(f"<p>{_safe(words)}</p>")


def note(words: str) -> Html:
    """Something that the reader should not miss."""
    return Html(f'<p class="note">{_safe(words)}</p>')


def code(lines: str) -> Html:
    return Html(f'<pre tabindex="0">{escape(lines)}</pre>')


def listed(lines: Iterable[str]) -> Html:
    return Html(f"<ul>{''.join(f'<li>{_safe(line)}</li>' for line in lines)}</ul>")


def remarked(value: str, remark: str) -> Html:
    """A cell's value with a remark in small letters beneath it, if there is one."""
    return Html(escape(value) + (f"<br><small>{escape(remark)}</small>" if remark else ""))


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0
) -> Html:
    """A table whose first column heads its rows; the ``numbers`` last columns are numbers."""
    first = len(header) - numbers
    heads = "".join(
        f'<th scope="col"{_kind(i >= first)}>{_safe(cell)}</th>' for i, cell in enumerate(header)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{_safe(cell)}</th>'
            if i == 0
            else f"<td{_kind(i >= first)}>{_safe(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in rows
    )
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figures(*drawn: tuple[Figure, str]) -> Html:
    """Figures side by side, each with what it shows in words."""
    return Html(f'<div class="figures">{"".join(_figure(*one) for one in drawn)}</div>')


def _figure(drawn: Figure, caption: str) -> str:
    return f"<figure>{svg(drawn, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def svg(drawn: Figure, label: str) -> Html:
    """A figure as an ``<svg>`` element, in the page's own colour and font; its ids are no other figure's."""
    buffer = io.StringIO()
    with style():
        mpl.rcParams["svg.hashsalt"] = label
        drawn.savefig(
            buffer,
            format="svg",
            dpi=150,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' id="(?!C\d)[\w.]+_\d+"', "", drawing)  # of groups, that nothing refers to
    return Html(drawing.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def pixels(drawn: Figure) -> Any:
    """A figure on white ground as uint8 [height, width, 3]."""
    with style():
        drawn.set(facecolor="white", dpi=110)
        canvas: Any = FigureCanvasAgg(drawn)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def image(pixels: Any, words: str) -> Html:
    """A picture, uint8 [height, width] or [height, width, 3], within the page; ``words`` tell those who do not see it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Html(
        f'<img src="data:image/png;base64,{b64encode(buffer.getvalue()).decode()}" alt="{escape(words)}">'
    )


def _safe(words: str) -> str:
    return words if isinstance(words, Html) else escape(words)


def _kind(number: bool) -> str:
    return ' class="number"' if number else ""
