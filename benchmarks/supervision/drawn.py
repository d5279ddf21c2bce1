"""The dashboard's own figures of the runs of one seed, every arm over RL alone of the same rate, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.io
from course import Row

from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.panels import PARSE_RATE, REWARD, STRUCTURE
from collapsewatch.dashboards.places import Place
from collapsewatch.dashboards.run_feed import RunFeed
from collapsewatch.dashboards.views import View

NEEDS = ("metrics",)
_TITLE_PX = 28


def page(rows: Sequence[Row], logdir: Path) -> str:
    """HTML that needs no network: reward, parse rate and structure of each run; those of RL alone in grey."""
    parts: list[str] = []
    for row in rows:
        names = [row.run, *(other.run for other in rows if _alone(other, row))]
        feed = Feed(logdir)
        feed.runs = {name: RunFeed(name, logdir / name) for name in names}
        for run in feed.runs.values():
            run.refresh(NEEDS)
        view = View(feed, Place(runs=tuple(names)), NEEDS, len(names))
        feed.close()
        parts.append(f"<h2>{escape(names[0])}</h2>")
        for panel in (REWARD, PARSE_RATE, STRUCTURE):
            if (drawn := panel.draw(names[0], view)) is not None:
                layout = drawn["layout"]
                layout["title"] = {"text": panel.title, "font": {"size": 14}}
                layout["height"] += _TITLE_PX
                layout["margin"] = {**layout["margin"], "t": layout["margin"]["t"] + _TITLE_PX}
                library = len(parts) == 1  # the first figure brings it along
                parts.append(plotly.io.to_html(drawn, include_plotlyjs=library, full_html=False, validate=False))
    return f"<!doctype html><meta charset=utf-8><title>supervision</title>{''.join(parts)}"


def _alone(other: Row, row: Row) -> bool:
    return other.arm == "none" and row.arm != "none" and (other.rate, other.seed) == (row.rate, row.seed)
