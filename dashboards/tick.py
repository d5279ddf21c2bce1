"""What one tick changes on a page, and what a zoom does: points are added, words replaced, nothing else is sent.

The page is built again only when its shape changes: a run appears, a line is seen for the first time, an alarm is
raised, or the browser slept for longer than the news are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any

from dash import Patch, no_update

from .feed import Feed
from .pages import Page
from .places import Place
from .views import Cursor, View, digest

Id = dict[str, str]
Change = tuple[Any, ...]
"""Page, cursor, choice of runs, address, first and last step; per graph an extension and a figure; per part words."""


class Live:
    """What stands in one browser: the place of its address, what its cursor has, its graphs' and live words' ids."""

    def __init__(
        self,
        feed: Feed,
        pages: Mapping[str, Page],
        place: Place,
        cursor: Cursor | None,
        graphs: Sequence[Id],
        parts: Sequence[Id],
    ) -> None:
        self.feed, self.cursor, self.graphs, self.parts = feed, cursor, graphs, parts
        self.href = place.href
        self.place = place.within(pages)
        self.page = pages[self.place.page]
        self.panels = {panel.name: panel for panel in self.page.panels}

    def view(self, place: Place | None = None) -> View:
        """The runs as they are now."""
        return View(self.feed, place or self.place, self.page.needs, self.page.most)

    def change(self, first: Sequence[Any] = (), extend: Any = None, draw: Any = None, words: Any = None) -> Change:
        """A change of these things only."""
        return (
            *first,
            *(no_update,) * (6 - len(first)),
            extend or [no_update] * len(self.graphs),
            draw or [no_update] * len(self.graphs),
            words or [no_update] * len(self.parts),
        )

    def zoomed(self, layout: Any) -> Change:
        """The same page over another range of steps, read anew: a part of the run is thinned less than all of it."""
        place = _zoom(self.place, layout)
        if self.cursor is None or place == self.place or place.more.get("align") == "onset":
            return self.change()
        view = self.view(place)
        view.at = self.cursor["at"]
        drawn = [
            self.panels[i["panel"]].draw(i["run"], view) if i["panel"] in self.panels else None for i in self.graphs
        ]
        ends = ("" if step is None else step for step in (place.first, place.last))
        first = (no_update, view.cursor(), no_update, place.search, *ends)
        return self.change(first, draw=[no_update if figure is None else figure for figure in drawn])


def news(live: Live) -> Change:
    """What one tick changes."""
    cursor = live.cursor
    if cursor is None:
        return live.change()
    view = live.view()
    live.feed.want(view.runs, live.page.needs)
    fresh = {key: run.fresh(cursor["versions"].get(key, -1)) for key, run in view.runs.items()}
    view.versions = {key: version for key, (version, _) in fresh.items()}
    now = view.cursor()
    runs = sorted(live.feed.runs) if now["runs"] != cursor["runs"] else no_update
    # A tick for the page before may have come in after the new page, and brought its own cursor or even itself.
    foreign = cursor["href"] != live.href or any(i["at"] != cursor["at"] for i in (*live.graphs, *live.parts))
    if now["shape"] != cursor["shape"] or foreign or any(dots is None for _, dots in fresh.values()):
        view = live.view()
        return live.change((live.page.body(view), {**view.cursor(), "href": live.href}, runs))
    hashes = dict(cursor["hashes"])
    dots = {key: found or {} for key, (_, found) in fresh.items()}
    extend = [_extend(live, i, view, dots) for i in live.graphs]
    draw = [_redraw(live, i, view, hashes) for i in live.graphs]
    words = [_words(live, i, view, hashes) for i in live.parts]
    kept = {**now, "at": cursor["at"], "href": cursor["href"], "hashes": hashes}
    return live.change((no_update, kept if kept != cursor else no_update, runs), extend, draw, words)


def _extend(live: Live, i: Id, view: View, dots: Mapping[str, Any]) -> Any:
    panel = live.panels.get(i["panel"])
    if panel is None or live.place.last is not None or not hasattr(panel, "extend"):
        return no_update
    return panel.extend(i["run"], view, dots) or no_update


def _redraw(live: Live, i: Id, view: View, hashes: dict[str, str]) -> Any:
    """New counts for a panel of counts, when they have changed; its axes stay as they are."""
    panel = live.panels.get(i["panel"])
    if panel is None or hasattr(panel, "extend"):
        return no_update
    figure = panel.draw(i["run"], view)
    if figure is None or not _changed(hashes, f"{i['panel']} {i['run']}", figure["data"]):
        return no_update
    patch = Patch()
    patch["data"] = figure["data"]
    return patch


def _words(live: Live, i: Id, view: View, hashes: dict[str, str]) -> Any:
    words = live.page.parts[i["part"]](view, i["run"])
    return words if _changed(hashes, f"{i['part']} {i['run']}", words) else no_update


def _changed(hashes: dict[str, str], key: str, value: Any) -> bool:
    before, hashes[key] = hashes.get(key), digest(value)
    return before != hashes[key]


def _zoom(place: Place, layout: Any) -> Place:
    if not isinstance(layout, dict):
        return place
    if layout.get("xaxis.autorange"):
        return place.at(first=None, last=None)
    ends = layout.get("xaxis.range[0]"), layout.get("xaxis.range[1]")
    if not all(isinstance(end, int | float) for end in ends):
        return place
    first = max(0, ceil(ends[0]))
    return place.at(first=first, last=max(first, floor(ends[1])))
