"""The still picture of a page: all of its words and lines, as data, before a script has run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import dcc, html
from dash.development.base_component import Component
from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.dashboards.app import build, create_app
from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.pages import PAGES, load_page
from collapsewatch.dashboards.places import Place
from collapsewatch.dashboards.still import picture, still
from tests.dashboard_runs import write_run


class Read(HTMLParser):
    """What a browser would read: tags, their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.given: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.given += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def texts(shown: Any) -> list[str]:
    """The text of components, but of those that only a script can show."""
    if isinstance(shown, list | tuple):
        return [text for inner in shown for text in texts(inner)]
    if isinstance(shown, Component):
        return texts(getattr(shown, "children", None))
    return [] if shown is None else [str(shown)]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_s_words_are_there_as_data(name: str, tmp_path: Path) -> None:
    for run in ("healthy", "<b>{%scripts%}"):
        write_run(tmp_path / run, broken=run != "healthy")
    feed, page = Feed(tmp_path), load_page(name)
    body, _ = build(feed, page, Place(name), 10.0)
    read = Read(still(body))
    assert "".join(read.words) == "".join(texts(body)) != ""
    assert not {"script", "img", "b", "iframe"} & set(read.tags)
    assert not [name for name, _ in read.given if name.startswith("on") or name == "id"]
    answer = create_app(feed).server.test_client().get(f"/{name}").get_data(as_text=True)
    before, _, after = answer.partition('<div id="react-entry-point">')
    assert 'id="cw-still"' in before and "<script" not in before and after.count("dash_renderer") >= 1
    if name != "rollouts":
        assert "".join(Read(before).words).count("<b>{%scripts%}") >= 1  # a run's name is filled in by nobody
    feed.close()


def test_a_page_that_cannot_be_drawn_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(shown: Any) -> str:
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr("collapsewatch.dashboards.app.still", fail)
    answer = create_app(Feed(tmp_path)).server.test_client().get("/")
    assert answer.status_code == 200 and b"cw-still" not in answer.data and "no ink" in caplog.text


@given(st.text(), st.text())
def test_text_and_attributes_come_back_as_they_were(text: str, title: str) -> None:
    read = Read(still(html.P([text, html.I(title=title)], className="a")).replace("\r", "&#13;"))
    assert "".join(read.words) == text and ("title", title) in read.given and read.tags == ["p", "i"]


def drawn(*lines: dict[str, Any], **axis: Any) -> list[np.ndarray]:
    """The points of each path, x from 0 to 1000 and y from 0 at the top to 100."""
    layout = {"height": 134, "margin": {"l": 46, "r": 12, "t": 8, "b": 26}, "yaxis": axis}
    paths = re.findall(r' d="([^"]*)"', picture({"data": list(lines), "layout": layout}))
    return [np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2) for path in paths]


def line(y: list[float | None], **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "x": list(range(len(y))), "y": y, "line": {"color": "#000", "width": 1}, **more}


def test_a_line_is_drawn_where_its_points_are() -> None:
    (rising,) = drawn(line([0.0, 1.0, 4.0]))
    assert rising.tolist() == [[0, 100], [500, 75], [1000, 0]]
    (clipped,) = drawn(line([-1.0, 0.5, 3.0]), range=[0, 1])
    assert clipped[:, 1].tolist() == [100, 50, 0]
    (decades,) = drawn(line([1e-4, 1e-2, 1.0]), type="log", range=[-4, 0])
    assert decades[:, 1].tolist() == [100, 50, 0]
    (gap,) = drawn(line([1.0, None, 0.0]))
    assert gap.tolist() == [[0, 0], [1000, 100]]
    (flat,) = drawn(line([2.0]))
    assert flat.tolist() == [[0, 100]]


def test_stacked_lines_stand_on_each_other() -> None:
    areas = drawn(line([0.25, 0.75], stackgroup="a"), line([0.75, 0.25], stackgroup="a"), range=[0, 1])
    assert areas[0].tolist() == [[0, 75], [1000, 25], [1000, 100], [0, 100]]
    assert areas[1].tolist() == [[0, 0], [1000, 0], [1000, 25], [0, 75]]


@given(
    z=st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            st.lists(st.one_of(st.none(), st.floats(-1, 2)), min_size=rows, max_size=rows), min_size=1, max_size=8
        )
    )
)
def test_every_cell_of_a_heat_map_has_its_colour(z: list[list[float | None]]) -> None:
    columns, rows = len(z), len(z[0])
    heat = {"type": "heatmap", "transpose": True, "x": [10 * i for i in range(columns)], "z": z, "zmin": 0, "zmax": 1}
    heat["colorscale"] = [[0, "rgb(0, 0, 0)"], [1, "rgb(250, 0, 0)"]]
    layout = {"height": 134, "margin": {"l": 46, "r": 12, "t": 8, "b": 26}}
    shown = picture({"data": [heat], "layout": layout})
    found: dict[tuple[int, int], float] = {}
    for path, red in re.findall(r'd="([^"]*)" fill="rgb\((\d+), 0, 0\)"', shown):
        for x, y, wide, tall in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", path):
            assert float(tall) == pytest.approx(100 / rows, abs=0.06)
            row = round(float(y) * rows / 100)
            first, last = (round(edge * columns / 1000) for edge in (float(x), float(x) + float(wide)))
            for column in range(first, last):
                assert (column, row) not in found
                found[column, row] = int(red) / 250
    known = {(i, row): min(max(v, 0.0), 1.0) for i, col in enumerate(z) for row, v in enumerate(col) if v is not None}
    assert found == pytest.approx(known, abs=0.5 / 31 + 0.003)


def test_what_is_no_line_leaves_its_place_empty() -> None:
    layout = {"height": 60, "margin": {"l": 1, "r": 1, "t": 5, "b": 5}}
    marks = line([1.0, 1.0], yaxis="y2")
    for data in ([], [{"type": "heatmap"}], [{"type": "bar", "x": [1]}], [marks], [line([None])]):
        shown = still(html.Div(dcc.Graph(figure={"data": data, "layout": layout})))
        assert "<path" not in shown and 'height="50"' in shown
    assert still(dcc.Graph()) == still(dcc.Store(id="x")) == still(None) == ""
