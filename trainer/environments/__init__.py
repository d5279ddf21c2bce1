"""Task environments. To add one: a file with an `Environment` subclass, and one line in the table."""

from __future__ import annotations

from collapsewatch.plugins import resolve

from .base import Environment, Episode, Task

ENVIRONMENTS: dict[str, str] = {"chain": f"{__name__}.chain:Chain"}

__all__ = ["ENVIRONMENTS", "Environment", "Episode", "Task", "load_environment"]


def load_environment(name: str) -> Environment:
    """The environment of that name, or of an outside `pkg.mod:Class`."""
    environment: Environment = resolve(ENVIRONMENTS, name, family="environment")()
    return environment
