"""HTML elements: whatever is not markup already is escaped, so that foreign text is only ever text."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Sequence


class Html(str):
    """Markup, put into a page as it is; only this module and constants make it."""

    __slots__ = ()


Inside = str | None | Iterable["Inside"]
"""What an element may hold: text, markup, nothing, or several of them."""


def visible(text: object) -> str:
    """Text with its control and direction-changing characters spelled out, line breaks and tabs kept.

    >>> visible("a\\x1b[1m\\n"), visible("\\u202e\\ud800")
    ('a\\\\x1b[1m\\n', '\\\\u202e\\\\ud800')
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))


def escaped(inside: Inside) -> Html:
    """Everything in `inside`, joined."""
    if inside is None or isinstance(inside, Html):
        return inside or Html()
    if isinstance(inside, str):
        return Html(html.escape(visible(inside)))
    return Html("".join(map(escaped, inside)))


def tag(name: str, *inside: Inside, **attributes: str | bool | None) -> Html:
    """One element; `class_` is `class`, `data_x` is `data-x`, an attribute that is None or False is left out.

    >>> tag("a", "<b>", href="#x", class_=None)
    '<a href="#x">&lt;b&gt;</a>'
    """
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    told = {names[key]: value for key, value in attributes.items() if value is not None and value is not False}
    head = "".join(f" {key}" if value is True else f' {key}="{escaped(str(value))}"' for key, value in told.items())
    return Html(f"<{name}{head}>{escaped(inside)}</{name}>")


def table(head: Sequence[str], rows: Iterable[Sequence[Inside]], numbers: Collection[int] = ()) -> Html:
    """A table that scrolls sideways where it is too wide; the columns at `numbers` are set to the right."""
    sides = ["n" if i in numbers else None for i in range(len(head))]
    first = tag("tr", [tag("th", name, class_=side, scope="col") for name, side in zip(head, sides, strict=True)])
    body = [tag("tr", [tag("td", cell, class_=side) for cell, side in zip(row, sides, strict=True)]) for row in rows]
    return tag("div", tag("table", tag("thead", first), tag("tbody", body)), class_="wide", tabindex="0")


def marked(text: str, tokens: Collection[str], main: str = "") -> Html:
    """Model text, its control tokens marked, `main` among them more strongly.

    >>> marked("<a>1", ["<a>"])
    '<mark>&lt;a&gt;</mark>1'
    """
    known = sorted(filter(None, tokens), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]
    return escaped(
        tag("mark", piece, class_="main" if piece == main else None) if i % 2 else escaped(piece)
        for i, piece in enumerate(pieces)
    )


def coded(text: str) -> Html:
    """Our own text, with what stands between backticks as code.

    >>> coded("set `a<b` first")
    'set <code>a&lt;b</code> first'
    """
    pieces = enumerate(text.split("`"))
    return escaped(tag("code", piece) if i % 2 else escaped(piece) for i, piece in pieces)
