"""The pages: one small file each and one line in `PAGES`.

A page is a module-level `PAGE = Page(...)`. It says in `needs` what a run must hold to fill it, and what it
shows when there is nothing: a page never fails for want of data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dash import Dash
from dash.development.base_component import Component

from collapsewatch.plugins import resolve

from ..feed import Feed


@dataclass(frozen=True)
class Page:
    """One page: `body` builds it from the runs as they are now, `register` adds its callbacks to an app."""

    title: str
    needs: tuple[str, ...]  # tables of schema.sql
    body: Callable[[Feed], Component]
    register: Callable[[Dash, Feed], None]


PAGES = {
    "overview": "collapsewatch.dashboards.pages.overview:PAGE",
}


def load_page(name: str) -> Page:
    """The page listed under `name`, or given as `pkg.mod:Attr`; raises UnknownPlugin with the choices."""
    page: Page = resolve(PAGES, name, family="page")
    return page
