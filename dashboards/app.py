"""The Dash app: routes an address to its page, and sends once a second what is new on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from dash.development.base_component import Component
from flask import request

from .access import guard
from .feed import Feed
from .frame import frame, links
from .pages import PAGES, Page, load_page
from .places import Place, place_of
from .still import still
from .tick import Live, news
from .views import Cursor, View

_log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.3
"""A page waits so long for what it needs; then it shows what is there, and the rest as it comes."""

STILL_WAIT_S = 1.5
"""The same of its still picture: it comes once, and Dash itself needs longer."""

# Dash's own, but with the language, which a screen reader needs.
_INDEX = """<!DOCTYPE html><html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body></html>"""


class _App(Dash):  # type: ignore[misc]
    """Dash whose first answer shows the page already: its words and lines, before a script has run."""

    def __init__(self, pictured: Callable[[], str], **knobs: Any) -> None:
        super().__init__(__name__, **knobs)
        self._pictured = pictured

    def interpolate_index(self, **parts: Any) -> str:
        """The page's HTML around the place where Dash will build it."""
        found: str = super().interpolate_index(**{**parts, "app_entry": self._pictured() + parts["app_entry"]})
        return found


def create_app(feed: Feed, host: str = "127.0.0.1", token: str = "") -> Dash:
    """The dashboard over the runs of a feed, whose folder may be empty or absent: runs are picked up live.

    `host` is the address it will listen on; with a `token`, only who knows it gets in.
    """
    pages = {name: load_page(name) for name in PAGES}
    app = _App(
        lambda: _still(feed, pages),
        assets_folder=str(Path(__file__).with_name("assets")),
        title="collapsewatch",
        update_title="",  # the tab's title would flicker every second
        serve_locally=True,
        enable_mcp=False,
        add_log_handler=False,
        index_string=_INDEX,
        suppress_callback_exceptions=True,  # a page stands in the layout only while it is shown
    )
    app.layout = frame(feed, pages)
    _navigate(app, feed, pages)
    _follow(app, feed, pages)
    _keep_ticking(app)
    for page in pages.values():
        if page.register:
            page.register(app, feed)
    guard(app.server, host, token, scripts=app.csp_hashes())
    return app


def build(feed: Feed, page: Page, place: Place, wait: float = FIRST_WAIT_S) -> tuple[Component, View]:
    """A page as its runs stand now, and what it was built from."""
    feed.refresh_once()
    view = View(feed, place, page.needs, page.most)
    feed.want(view.runs, page.needs, wait)
    view = View(feed, place, page.needs, page.most)
    return page.body(view), view


def _still(feed: Feed, pages: Mapping[str, Page]) -> str:
    """The page that is asked for, as a picture; nothing where it cannot be drawn."""
    try:
        place = place_of(request.path, f"?{request.query_string.decode()}").within(pages)
        body, _ = build(feed, pages[place.page], place, STILL_WAIT_S)
        shown = still(frame(feed, pages, place, body))
    except Exception:
        _log.exception("collapsewatch: no still picture of %s", request.path)
        return ""
    return f'<div id="cw-still">{shown}</div>'.replace("{%", "&#123;%")  # else Dash would fill it in


def _navigate(app: Dash, feed: Feed, pages: dict[str, Page]) -> None:
    @app.callback(
        Output("page", "children"),
        Output("cursor", "data"),
        Output("nav", "children"),
        Output("pick", "value"),
        Output("pick", "data"),
        Output("first", "value"),
        Output("last", "value"),
        Input("url", "pathname"),
        Input("url", "search"),
        State("cursor", "data"),
    )
    def show(path: str | None, search: str | None, cursor: Cursor | None) -> Any:
        asked = place_of(path, search)
        place = asked.within(pages)
        if cursor and cursor["href"] == asked.href:  # drawn already, by a zoom or a tick that met the new address
            return no_update, no_update, links(pages, place), *(no_update,) * 4
        body, view = build(feed, pages[place.page], place)
        first, last = ("" if step is None else step for step in (place.first, place.last))
        kept = {**view.cursor(), "href": asked.href}
        return body, kept, links(pages, place), list(place.runs), sorted(feed.runs), first, last

    @app.callback(
        Output("url", "search"),
        Input("pick", "value"),
        Input("first", "value"),
        Input("last", "value"),
        State("url", "pathname"),
        State("url", "search"),
        prevent_initial_call=True,
    )
    def pick(runs: list[str] | None, first: Any, last: Any, path: str | None, search: str | None) -> Any:
        place = place_of(path, search)
        ends = (value if isinstance(value, int) and value >= 0 else None for value in (first, last))
        picked = place.at(runs=tuple(runs or ()), **dict(zip(("first", "last"), ends, strict=True)))
        return no_update if picked == place else picked.search


def _keep_ticking(app: Dash) -> None:
    app.clientside_callback(
        ClientsideFunction("collapsewatch", "beat"),
        Output("tick", "disabled"),
        Input("beat", "n_intervals"),
        prevent_initial_call=True,
    )


def _follow(app: Dash, feed: Feed, pages: dict[str, Page]) -> None:
    graph = {"type": "graph", "panel": ALL, "run": ALL, "at": ALL}

    @app.callback(
        Output("page", "children", allow_duplicate=True),
        Output("cursor", "data", allow_duplicate=True),
        Output("pick", "data", allow_duplicate=True),
        Output("url", "search", allow_duplicate=True),
        Output("first", "value", allow_duplicate=True),
        Output("last", "value", allow_duplicate=True),
        Output(graph, "extendData"),
        Output(graph, "figure"),
        Output({"type": "part", "part": ALL, "run": ALL, "at": ALL}, "children"),
        Input("tick", "n_intervals"),
        Input(graph, "relayoutData"),
        State("cursor", "data"),
        State("url", "pathname"),
        State("url", "search"),
        # One tick at a time: of two on their way Dash would drop what the first one brings, on a slow machine for ever.
        running=[(Output("tick", "disabled"), True, False)],
        prevent_initial_call=True,
    )
    def on_tick(_: int, layouts: list[Any], cursor: Cursor | None, path: str | None, search: str | None) -> Any:
        *_, graphs, _figures, parts = (
            ([o["id"] for o in out] if isinstance(out, list) else out) for out in ctx.outputs_list
        )
        shown = Live(feed, pages, place_of(path, search), cursor, graphs, parts)
        if isinstance(ctx.triggered_id, dict):
            return shown.zoomed(ctx.triggered[0]["value"])
        return news(shown)
