"""The Dash app: the frame around the pages, and who may talk to it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import dash_mantine_components as dmc
from dash import Dash, Input, Output, dcc, html
from dash.development.base_component import Component
from flask import Flask, Response, abort, request

from collapsewatch.words import plain

from .feed import Feed
from .pages import PAGES, Page, load_page
from .words import aria

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names under which this machine answers itself."""

TICK_MS = 1000


def create_app(logdir: Path, allowed_hosts: Iterable[str] = LOOPBACK) -> Dash:
    """The dashboard over the runs below `logdir`, which may be empty or absent: runs are picked up live.

    `allowed_hosts` are the host names a request may be addressed to; any other is answered with 403.
    """
    feed = Feed(Path(logdir).resolve())
    app = Dash(
        __name__,
        assets_folder=str(Path(__file__).with_name("assets")),
        title="collapsewatch",
        update_title="",  # the tab's title would flicker every second
        serve_locally=True,
        enable_mcp=False,
        add_log_handler=False,
        suppress_callback_exceptions=True,  # a page stands in the layout only while it is shown
    )
    pages = {name: load_page(name) for name in PAGES}
    app.layout = _frame(feed, pages)
    for page in pages.values():
        page.register(app, feed)

    @app.callback(Output("page", "children"), Input("url", "pathname"))
    def show(path: str | None) -> Component:
        name = (path or "").strip("/") or next(iter(pages))
        if name not in pages:
            return html.P(f"No page {plain(name, 60)!r}; there is {', '.join(pages)}.", className="cw-empty")
        feed.refresh()
        return pages[name].body(feed)

    _guard(app.server, frozenset(allowed_hosts), scripts=app.csp_hashes())
    return app


def _frame(feed: Feed, pages: dict[str, Page]) -> Component:
    links = [dcc.Link(page.title, href=f"/{name}", className="cw-link") for name, page in pages.items()]
    frame: Component = dmc.MantineProvider(
        [
            dcc.Location(id="url"),
            dcc.Interval(id="tick", interval=TICK_MS),
            html.Header(
                [
                    html.H1("collapsewatch"),
                    html.Nav(links, **aria("Pages")),
                    html.Span(plain(feed.logdir), className="cw-folder", title="The log folder"),
                    dmc.ColorSchemeToggle(
                        id="scheme",
                        variant="default",
                        size="md",
                        lightIcon=html.Span("☀"),
                        darkIcon=html.Span("☾"),
                        **aria("Switch between light and dark"),
                    ),
                ],
                className="cw-header",
            ),
            html.Main(id="page"),
        ],
        defaultColorScheme="auto",
    )
    return frame


def _guard(server: Flask, hosts: frozenset[str], scripts: Iterable[str]) -> None:
    """Answers only requests addressed to `hosts` from the app's own pages (DNS rebinding, cross-site)."""
    # `data:` and `blob:` are the toolbar's own PNG export; styles are inline because Plotly writes them so.
    policy = (
        f"default-src 'self'; script-src 'self' {' '.join(scripts)}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )

    @server.before_request
    def refuse_strangers() -> None:
        try:
            host = urlsplit(f"//{request.host}").hostname
        except ValueError:
            host = None
        if host not in hosts:
            abort(403)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("Origin")
            if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
                abort(403)
            if origin is not None and origin.partition("//")[2] != request.host:
                abort(403)

    @server.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    server.config["MAX_CONTENT_LENGTH"] = 1 << 20  # a browser sends a few hundred bytes
