"""collapsewatch: sees tool-use RL collapse in the probabilities of control tokens, and steps in.

Public names load on first use, so that `import collapsewatch` pulls in neither torch nor dash.
"""

from __future__ import annotations

from typing import Any

from .plugins import resolve

__version__ = "0.1.0"

_PUBLIC = {
    "CollapseCallback": "collapsewatch.callback:CollapseCallback",
    "Monitor": "collapsewatch.monitor:Monitor",
    "analyze": "collapsewatch.report:analyze",
    "classify": "collapsewatch.structure:classify",
    "format_for": "collapsewatch.formats.detect:format_for",
    "open_run": "collapsewatch.queries:open_run",
}
__all__ = ["CollapseCallback", "Monitor", "__version__", "analyze", "classify", "format_for", "open_run"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'collapsewatch' has no attribute {name!r}")
    return resolve(_PUBLIC, name)


def __dir__() -> list[str]:
    return sorted(__all__)
