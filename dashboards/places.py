"""Where a browser is: page, runs, range of steps, and what a page adds; all of it in the address, so a link leads back.

/control?run=a&run=b&from=20&to=60&token=%3Ctool_call%3E
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

_LONGEST = 4000  # characters of an address that are read


@dataclass(frozen=True)
class Place:
    """A view of the dashboard; `first` and `last` are steps, None where the range is open, `more` a page's own."""

    page: str = "overview"
    runs: tuple[str, ...] = ()
    first: int | None = None
    last: int | None = None
    more: dict[str, str] = field(default_factory=dict)

    @property
    def ranged(self) -> bool:
        """Is only a part of the steps asked for?"""
        return self.first is not None or self.last is not None

    def at(self, **changes: Any) -> Place:
        """The place with other fields; a field of `more` whose value is empty goes."""
        fields = {name: changes.pop(name) for name in ("page", "runs", "first", "last") if name in changes}
        more = {k: str(v) for k, v in {**self.more, **changes}.items() if v not in (None, "")}
        return replace(self, more=more, **fields)

    def within(self, pages: Collection[str]) -> Place:
        """The same on the first of the pages, where it names none of them."""
        return self if self.page in pages else replace(self, page=next(iter(pages)))

    @property
    def search(self) -> str:
        """The query of its address, with the question mark; empty when there is nothing to say."""
        pairs = [("run", run) for run in self.runs]
        pairs += [(k, str(v)) for k, v in (("from", self.first), ("to", self.last)) if v is not None]
        query = urlencode(pairs + sorted(self.more.items()))
        return f"?{query}" if query else ""

    @property
    def href(self) -> str:
        """Its address on this server."""
        return f"/{self.page}{self.search}"


def place_of(path: str | None, search: str | None, home: str = "overview") -> Place:
    """The place an address means; what cannot be read of it is left out.

    >>> place_of("/control", "?run=a%2Fb&from=2&to=x&token=%3Cc%3E")
    Place(page='control', runs=('a/b',), first=2, last=None, more={'token': '<c>'})
    >>> place_of("/control", "?run=a%2Fb&from=2").href
    '/control?run=a%2Fb&from=2'
    """
    pairs = parse_qsl((search or "")[:_LONGEST].removeprefix("?"))
    more = {key: value for key, value in pairs if key not in ("run", "from", "to")}
    steps = {key: int(value) for key, value in pairs if key in ("from", "to") and value.isdecimal() and len(value) < 16}
    runs = tuple(dict.fromkeys(value for key, value in pairs if key == "run"))
    return Place((path or "").strip("/") or home, runs, steps.get("from"), steps.get("to"), more)
