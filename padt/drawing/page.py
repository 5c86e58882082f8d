"""Pages of HTML that need nothing beside themselves: reports of data sets, evaluations and comparisons.

A page is made of elements. Words that go into one are escaped unless they are ``Markup``, which only this module and
``padt.drawing.charts`` make: names, sentences and answers come from files of the internet. A page has no script, loads
nothing, and says so in its own Content-Security-Policy; for the same reason elements carry no ``style``.
"""

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

_LONG = 24
_VOID = frozenset({"img", "br", "meta"})
_STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --ink: #202124; --line: #8886; --accent: #1f6fc0; --second: #c2410c;
  --good: #2e7d32; --alarm: #d4402a; font: 15px/1.5 system-ui, sans-serif }
@media (prefers-color-scheme: dark) { :root { --page: #17181a; --ink: #e6e6e3; --accent: #6cb2f5; --second: #fb9a66;
  --good: #7cc682 } }
body { max-width: 76rem; margin: 1.5rem auto; padding: 0 1rem; background: var(--page); color: var(--ink) }
h1 { margin: 0; overflow-wrap: anywhere } h2 { margin: 2rem 0 .3rem; font-size: 1.3rem }
h3 { margin: 1.3rem 0 .3rem; font-size: 1.05rem }
h1, h2, h3 { line-height: 1.25 } p { margin: .3rem 0; max-width: 60rem }
a { color: var(--accent) } :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.skip { position: absolute; left: -99rem } .skip:focus { position: static }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; list-style: none } nav a { padding: .2rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; min-width: min(100%, 30rem) }
th, td { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; overflow-wrap: break-word }
th { font-weight: 600 } thead th { border-bottom: 1px solid var(--line) } tbody th { font-weight: inherit }
.long { min-width: 11rem; max-width: 40rem; overflow-wrap: anywhere }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.flow { columns: 22rem; column-gap: 3rem } .flow h3 { margin-top: 0; break-after: avoid }
.flow > div { break-inside: avoid-column; padding-bottom: 1.2rem } .flow tr { break-inside: avoid }
.flow table { min-width: 0 } .flow .wide { overflow: visible } .flow th, .flow td { padding-right: .7rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)) }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: .4rem }
figure { margin: 0; min-width: 0 } figcaption { margin-top: .2rem } figcaption, code, p { overflow-wrap: anywhere }
img { width: 100%; height: auto; display: block } .pair p { margin: 0; font-size: .85rem; opacity: .75 }
.quiet { opacity: .75 } .alarm { border-left: .4rem solid var(--alarm); background: #d4402a22; padding: .5rem .8rem }
details { margin: .6rem 0 } summary { cursor: pointer; padding: .2rem 0 }
svg { max-width: 100%; height: auto; overflow: visible; font: 12px system-ui, sans-serif }
svg.bar { vertical-align: middle; max-width: none } svg text { fill: var(--ink) }
.ink { fill: var(--accent) } .ink2 { fill: var(--second) } .track { fill: #8883 }
.axis { stroke: var(--ink); stroke-opacity: .55 } .rule { stroke: var(--line) } .mark { stroke: var(--ink) }
.dashed { stroke: var(--ink); stroke-opacity: .6; stroke-dasharray: 4 4 }
.line, .line2 { stroke: var(--accent); stroke-width: 2; fill: none } .line2 { stroke: var(--second) }
@media (max-width: 40rem) { th, td { padding-right: .5rem; font-size: .85rem } .long { min-width: 14rem } }
@media print { .wide { overflow: visible } }
"""
_POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src 'sha256-"
    f"{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


class Markup(str):
    """HTML that is safe as it stands."""

    __slots__ = ()


class Number(str):
    """A number that is written out already; it stands right in a table."""

    __slots__ = ()


Content: TypeAlias = str | int | float | None
"""What an element may hold: text, which is escaped, ``Markup``, or a number; None is left out."""


@dataclass(frozen=True)
class PageSection:
    """One part of a page, with its place in the contents.

    Attributes:
        title: its heading.
        parts: what it holds, in order.
    """

    title: str
    parts: tuple[Content, ...]


def element(name: str, /, *children: Content, **attributes: Content) -> Markup:
    """An HTML or SVG element.

    Args:
        name: of the element.
        children: what it holds.
        attributes: their values; the underscores of a name become hyphens, the last one goes (``class_``), and None
            leaves an attribute out.
    """
    named = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>") if name in _VOID else Markup(f"<{name}{named}>{joined(children)}</{name}>")


def joined(parts: Iterable[Content]) -> Markup:
    """Parts one after the other: text escaped, ``Markup`` as it is, numbers with commas and up to three decimals."""
    return Markup("".join(_written(part) for part in parts if part is not None))


def paragraph(*children: Content, class_: str | None = None) -> Markup:
    """A paragraph; the class ``quiet`` is for remarks, ``alarm`` for what must not go unnoticed."""
    return element("p", *children, class_=class_)


def table(columns: Sequence[str], rows: Sequence[Sequence[Content]], label: str) -> Markup:
    """A table; a wide one scrolls in its own frame, which the keyboard reaches.

    Args:
        columns: their names.
        rows: a cell for each column. The first names the row. Columns of numbers (and None) stand right.
        label: what it shows, for those who hear the page.
    """
    numeric = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    head = (
        element("th", name, scope="col", class_="n" if right else None)
        for name, right in zip(columns, numeric, strict=True)
    )
    body = (
        element(
            "tr",
            *(
                element("td", cell, class_=_class(cell, right))
                if place
                else element("th", cell, scope="row", class_=_class(cell, right))
                for place, (cell, right) in enumerate(zip(row, numeric, strict=True))
            ),
        )
        for row in rows
    )
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", whole, class_="wide", role="region", aria_label=label, tabindex=0)


def picture(image: Image.Image, alt: str, width: int = 720, quality: int = 82) -> Markup:
    """An image in the page itself, as JPEG; the same pixels give the same bytes.

    Args:
        image: any RGB image.
        alt: what it shows, in words.
        width: a wider image is scaled down to so many pixels.
        quality: of the JPEG, up to 95.
    """
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return element("img", alt=alt, width=str(image.width), height=str(image.height), src=source)


def figure(pictures: Sequence[Markup], *caption: Content) -> Markup:
    """One picture, or several side by side, with words below."""
    shown = pictures[0] if len(pictures) == 1 else element("div", *pictures, class_="pair")
    return element("figure", shown, element("figcaption", *caption))


def html_page(title: str, lead: Sequence[Content], sections: Sequence[PageSection]) -> bytes:
    """A whole page as UTF-8; the same content gives the same bytes.

    Args:
        title: of the page.
        lead: what stands before the first section.
        sections: each with a link in the contents, where there are three or more.
    """
    names = _anchors([section.title for section in sections])
    links = [
        element("li", element("a", each.title, href=f"#{name}")) for each, name in zip(sections, names, strict=True)
    ]
    contents = element("nav", element("ul", *links), aria_label="Contents") if len(links) > 2 else None
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    body = element(
        "body",
        element("a", "To the content", href="#content", class_="skip"),
        element("header", element("h1", title), *lead),
        contents,
        element(
            "main",
            *(
                element("section", element("h2", each.title, id=name), *each.parts, aria_labelledby=name)
                for each, name in zip(sections, names, strict=True)
            ),
            id="content",
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n".encode("utf-8", "replace")


def _written(part: Content) -> str:
    if isinstance(part, Markup):
        return part
    if isinstance(part, str):
        return html.escape(part)
    return f"{part:,}" if isinstance(part, int) else f"{part:,.3f}"


def _is_number(cell: Content) -> bool:
    return cell is None or isinstance(cell, int | float | Number)


def _class(cell: Content, numeric: bool) -> str | None:
    """Numbers stand right; long texts are broken anywhere, short ones keep their words whole."""
    if numeric:
        return "n"
    return "long" if isinstance(cell, str) and not isinstance(cell, Markup) and len(cell) > _LONG else None


def _anchors(titles: Sequence[str]) -> list[str]:
    """A name for each section's link: its words, with a number where two sections share them."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return names
