"""The dashboard: a Dash app over the store of the runs in a log folder; it reads, and never writes.

`serve` is what the command line calls, `serve_in_thread` serves beside a training run in the same process.
"""

from __future__ import annotations

from .app import create_app
from .feed import Feed
from .server import DashboardError, Handle, serve, serve_in_thread

__all__ = ["DashboardError", "Feed", "Handle", "create_app", "serve", "serve_in_thread"]
