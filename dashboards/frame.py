"""What stands around every page: its links, the choice of runs and steps, light and dark."""

from __future__ import annotations

from collections.abc import Mapping

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from collapsewatch.words import plain

from .feed import Feed
from .pages import Page
from .places import Place
from .words import aria

TICK_MS = 500
"""Between two ticks: what is logged is merged a second later, and shall be on screen within two."""

BEAT_MS = 5000
"""Between two looks whether ticks go on: one that met no server, while it was restarted, leaves them switched off."""


def frame(
    feed: Feed, pages: Mapping[str, Page], place: Place | None = None, body: Component | None = None
) -> Component:
    """The layout of the app around the body of a place's page, which by default is still empty."""
    # Plotly takes a second to start: a graph that nobody sees has it fetched while the page is asked for.
    body = body or dcc.Graph(style={"display": "none"})
    stand: Component = dmc.MantineProvider(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Interval(id="tick", interval=TICK_MS),
            dcc.Interval(id="beat", interval=BEAT_MS),
            dcc.Store(id="cursor"),
            html.A("Skip to the page", href="#page", className="cw-skip"),
            html.Header(
                [
                    html.H1("collapsewatch", className="cw-brand"),
                    html.Nav(links(pages, place or Place()), id="nav", **aria("Pages")),
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
            _choice(),
            html.Main(body, id="page", tabIndex="-1"),
        ],
        defaultColorScheme="auto",
    )
    return stand


def links(pages: Mapping[str, Page], place: Place) -> list[Component]:
    """A link to every page, over the same runs and steps."""
    return [
        dcc.Link(
            page.title,
            href=Place(name, place.runs, place.first, place.last).href,
            className="cw-link cw-here" if name == place.page else "cw-link",
            title=page.question,
        )
        for name, page in pages.items()
    ]


def _choice() -> Component:
    ends = [
        html.Label(
            [
                said,
                dcc.Input(id=name, type="number", min=0, step=1, debounce=True, placeholder=empty, className="cw-step"),
            ],
            className="cw-range",
        )
        for name, said, empty in (("first", "Steps from", "first"), ("last", "to", "newest"))
    ]
    return html.Section(
        [
            dmc.MultiSelect(
                id="pick",
                data=[],
                value=[],
                placeholder="Pick runs",
                searchable=True,
                clearable=True,
                size="xs",
                className="cw-pick",
                **aria("Runs to show"),
            ),
            *ends,
            html.Ul(
                [
                    html.Li([html.B(sign, className=f"cw-mark-{name}"), name])
                    for sign, name in (("▼", "alarm"), ("●", "cleared"), ("◆", "intervention"))
                ],
                className="cw-legend",
            ),
        ],
        className="cw-toolbar",
        **aria("Runs and steps"),
    )
