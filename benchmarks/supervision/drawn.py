"""The dashboard's own figures of the runs of one seed and rate, every arm beside RL alone, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.io
from course import Row

from collapsewatch.dashboards.feed import RunFeed
from collapsewatch.dashboards.figures import PANELS, figure

SHOWN = ("reward", "structure")
"""Names of the panels that are drawn; of those a run lacks, none."""


def page(rows: Sequence[Row], logdir: Path) -> str:
    """HTML that needs no network: of each run the panels, with RL alone of the same seed and rate in grey."""
    parts: list[str] = []
    drawn_any = False  # the first figure brings the library along
    for row in rows:
        names = [f"{row.cell}-{row.seed}", *(f"{a.cell}-{a.seed}" for a in rows if _alone(a, row))]
        runs = {name: RunFeed(name, logdir / name) for name in names}
        for feed in runs.values():
            feed.refresh()
        until = {name: len(feed.points) for name, feed in runs.items()}
        parts.append(f"<h2>{escape(names[0])}</h2>")
        for panel in PANELS:
            drawn = figure(panel, names[0], runs, until) if panel.name in SHOWN else None
            if drawn is not None:
                parts.append(plotly.io.to_html(drawn, include_plotlyjs=not drawn_any, full_html=False, validate=False))
                drawn_any = True
    return f"<!doctype html><meta charset=utf-8><title>supervision</title>{''.join(parts)}"


def _alone(other: Row, row: Row) -> bool:
    return other.arm == "none" and row.arm != "none" and (other.rate, other.seed) == (row.rate, row.seed)
