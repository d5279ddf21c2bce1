"""Task environments. To add one: a file with an `Environment` subclass, and one line in the table."""

from __future__ import annotations

from collapsewatch.plugins import resolve

from .base import Environment, Episode, Task

ENVIRONMENTS: dict[str, str] = {
    "chain": f"{__name__}.chain:Chain",
    "quiz": f"{__name__}.quiz:Quiz",
    "bfcl": f"{__name__}.bfcl:Bfcl",
    "bfcl_base": f"{__name__}.bfcl:BfclBase",
    "bfcl_miss_func": f"{__name__}.bfcl:BfclMissFunc",
    "bfcl_miss_param": f"{__name__}.bfcl:BfclMissParam",
    "bfcl_long_context": f"{__name__}.bfcl:BfclLongContext",
}

__all__ = ["ENVIRONMENTS", "Environment", "Episode", "Task", "load_environment"]


def load_environment(name: str) -> Environment:
    """The environment of that name, or of an outside `pkg.mod:Class`."""
    environment: Environment = resolve(ENVIRONMENTS, name, family="environment")()
    return environment
