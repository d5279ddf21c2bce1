"""The pages: one small file each and one line in `PAGES`.

A page is a module-level `PAGE = Page(...)`. It says in `needs` what a run must hold to fill it, and what it
shows when there is nothing: a page never fails for want of data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dash import Dash
from dash.development.base_component import Component

from collapsewatch.plugins import resolve

from ..feed import Feed
from ..parts import Drawn, Words
from ..views import MOST, View


@dataclass(frozen=True)
class Page:
    """One page: `question` is what it answers, `body` builds it from the runs as they are now.

    `panels` grow and `parts` are said again at every tick, wherever `body` has placed them (`parts.panel`,
    `parts.live`). Unless runs are picked the `most` latest are shown. `register` adds callbacks of its own.
    """

    title: str
    question: str
    needs: tuple[str, ...]  # tables of schema.sql
    body: Callable[[View], Component]
    panels: tuple[Drawn, ...] = ()
    parts: Mapping[str, Words] = field(default_factory=dict)
    most: int = MOST
    register: Callable[[Dash, Feed], None] | None = None


PAGES = {
    "overview": "collapsewatch.dashboards.pages.overview:PAGE",
    "alarms": "collapsewatch.dashboards.pages.alarms:PAGE",
    "rollouts": "collapsewatch.dashboards.pages.rollouts:PAGE",
    "control": "collapsewatch.dashboards.pages.control:PAGE",
    "structure": "collapsewatch.dashboards.pages.structure:PAGE",
    "compare": "collapsewatch.dashboards.pages.compare:PAGE",
}


def load_page(name: str) -> Page:
    """The page listed under `name`, or given as `pkg.mod:Attr`; raises UnknownPlugin with the choices."""
    page: Page = resolve(PAGES, name, family="page")
    return page
