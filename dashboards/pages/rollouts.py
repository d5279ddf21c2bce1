"""Rollouts: all of a run in a table with filters, and one of them token by token."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.dependencies import ALL, ClientsideFunction
from dash.development.base_component import Component

from collapsewatch.queries import RunError
from collapsewatch.reading import COMPARED, Condition, rollouts
from collapsewatch.slices import EVERY_STEP
from collapsewatch.words import plain

from ..feed import Feed
from ..parts import HEADING, live, nothing
from ..places import Place, place_of
from ..rollout_view import key_of, reader
from ..views import View
from ..words import aria
from . import Page

_NUMBERS = (
    *(("step", 90), ("rollout", 100), ("group", 95), ("reward", 100), ("advantage", 120), ("hazard", 100)),
    *(("turns", 90), ("tokens", 100), ("calls", 90), ("env_errors", 115), ("rank", 85)),
)
_WORDS = (("structure", 130), ("kept", 95))
_ORDER = ("step", "rollout", "structure", "reasons", "reward", "hazard", "kept")
_THEME = (
    "themeQuartz.withParams({backgroundColor:'var(--cw-panel)',foregroundColor:'var(--cw-text)',"
    "borderColor:'var(--cw-line)',headerTextColor:'var(--cw-soft)',headerBackgroundColor:'var(--cw-panel)',"
    "chromeBackgroundColor:'var(--cw-panel)',accentColor:'var(--cw-link)',fontSize:13,spacing:5,"
    "wrapperBorder:false,fontFamily:'inherit'})"
)
_SHOWN_RUNS = 12


def grown(view: View, key: str) -> list[Component]:
    """How far the table reaches; when this changes, the table asks again."""
    step = view.runs[key].last_step
    return [html.Span("no step yet" if step is None else f"up to step {step}", className="cw-hint")]


def _columns() -> list[dict[str, Any]]:
    common = {"sortable": True, "resizable": True, "suppressMovable": True}
    columns = {
        name: {
            "field": name,
            "headerName": name.replace("_", " ").capitalize(),
            "width": width,
            "filter": "agNumberColumnFilter",
            "filterParams": {"maxNumConditions": 1, "filterOptions": list(COMPARED)},
            **common,
        }
        for name, width in _NUMBERS
    }
    for name in ("reward", "advantage", "hazard"):
        columns[name]["valueFormatter"] = {"function": "params.value == null ? '' : d3.format('.3~g')(params.value)"}
    for name, width in _WORDS:
        options = {"filterOptions": ["equals", "notEqual", "contains"], "maxNumConditions": 1}
        columns[name] = {
            "field": name,
            "width": width,
            "filter": "agTextColumnFilter",
            "filterParams": options,
            **common,
        }
    columns["reasons"] = {"field": "reasons", "width": 190, "flex": 1, "minWidth": 150, "sortable": False}
    return [columns.pop(name) for name in _ORDER] + list(columns.values())


def body(view: View) -> Component:
    """The runs to choose from, the table, and the rollout that the address names."""
    if not view.runs:
        return nothing(view)
    key = next(iter(view.runs))
    shown = sorted(view.feed.runs)[:_SHOWN_RUNS]
    chips = [
        dcc.Link(
            plain(name, 60),
            href=Place("rollouts", (name,), view.place.first, view.place.last).href,
            className="cw-chip cw-here" if name == key else "cw-chip",
        )
        for name in shown
    ]
    grid = dag.AgGrid(
        id="rollout-grid",
        columnDefs=_columns(),
        rowModelType="infinite",
        dashGridOptions={
            "theme": {"function": _THEME},
            "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
            "cacheBlockSize": 100,
            "maxBlocksInCache": 20,
            "infiniteInitialRowCount": 1,
            "rowBuffer": 0,
        },
        getRowId="`${params.data.step}-${params.data.rank}-${params.data.rollout}`",
        persistence=key,
        persisted_props=["filterModel"],
        persistence_type="session",
        style={"height": "320px"},
    )
    head = html.Div(
        [live("title", HEADING["title"], key, view, className="cw-title"), live("grown", grown, key, view)],
        className="cw-card cw-wide",
    )
    return html.Div(
        [
            html.Nav(chips, className="cw-chips", **aria("Runs")),
            head,
            dcc.Store(id="rollout-asked"),
            html.Div(grid, className="cw-panel cw-wide", role="region", **aria("Rollouts")),
            html.Div(reader(view, key, key_of(view)), id="rollout", className="cw-panel cw-wide cw-rollout"),
        ]
    )


def conditions(model: Any) -> list[Condition]:
    """The conditions of a grid's filter model; what it cannot have written is left out."""
    found = []
    for column, asked in model.items() if isinstance(model, dict) else ():
        value, operator = (asked.get("filter"), asked.get("type")) if isinstance(asked, dict) else (None, None)
        if isinstance(value, str | int | float) and isinstance(operator, str):
            found.append(Condition(str(column), operator, value, asked.get("filterTo")))
    return found


def rows_of(view: View, asked: dict[str, Any]) -> dict[str, Any]:
    """A block of the table's rows, as the grid asks for it."""
    start, end = int(asked["startRow"]), int(asked["endRow"])
    order = [(str(s["colId"]), s["sort"] == "desc") for s in asked.get("sortModel") or ()]
    steps = (view.place.first or 0, EVERY_STEP if view.place.last is None else view.place.last)
    for run in view.runs.values():
        try:
            where = conditions(asked.get("filterModel"))
            page = rollouts(run.run, where, order, start, min(end - start, 500), steps)
        except RunError:
            break
        return {"rowData": [_row(row) for row in page.rows], "rowCount": page.total}
    return {"rowData": [], "rowCount": 0}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    said = {name: plain(value, 120) if isinstance(value, str) else value for name, value in row.items()}
    return {**said, "reasons": (said["reasons"] or "").replace("_", " ")}


def register(app: Dash, feed: Feed) -> None:
    """The table's rows, and the rollout chosen in it."""

    def here(cursor: dict[str, Any]) -> View:
        path, _, search = cursor["href"].partition("?")
        return View(feed, place_of(path, search), PAGE.needs, PAGE.most)

    @app.callback(
        Output("rollout-grid", "getRowsResponse"), Input("rollout-grid", "getRowsRequest"), State("cursor", "data")
    )
    def fill(asked: dict[str, Any] | None, cursor: dict[str, Any] | None) -> Any:
        return no_update if asked is None or cursor is None else rows_of(here(cursor), asked)

    @app.callback(
        Output("rollout", "children"),
        Output("url", "search", allow_duplicate=True),
        Output("cursor", "data", allow_duplicate=True),
        Input("rollout-grid", "selectedRows"),
        State("cursor", "data"),
        prevent_initial_call=True,
    )
    def choose(rows: list[dict[str, Any]] | None, cursor: dict[str, Any]) -> Any:
        if not rows or not cursor["href"].startswith("/rollouts"):
            return (no_update,) * 3
        view = here(cursor)
        view.place = view.place.at(**{name: rows[0][name] for name in ("step", "rank", "rollout")})
        shown = reader(view, next(iter(view.runs)), key_of(view))
        return shown, view.place.search, {**cursor, "href": view.place.href}

    app.clientside_callback(
        ClientsideFunction("collapsewatch", "again"),
        Output("rollout-asked", "data"),
        Input({"type": "part", "part": "grown", "run": ALL, "at": ALL}, "children"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("collapsewatch", "tokens"),
        Output("token-scale", "children"),
        Input("tokens", "data"),
        Input("token-mode", "value"),
    )


PAGE = Page(
    title="Rollouts",
    question="What did the model write, and what did it think of each token?",
    needs=("steps", "rollouts", "turns", "tokens", "alarms"),
    body=body,
    parts={"title": HEADING["title"], "grown": grown},
    most=1,
    register=register,
)
