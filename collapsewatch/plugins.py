"""Families (chat formats, detectors, interventions, importers, environments) are tables: a name, or `pkg.mod:Class`.

A table maps a name to `"pkg.mod:Attr"`, so that listing a family imports none of its members.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


class UnknownPlugin(ValueError):
    """Neither a listed name nor an importable `pkg.mod:Attr`."""


def resolve(table: Mapping[str, str], name: str, family: str = "plugin") -> Any:
    """The object that `name` stands for: a name listed in `table`, or an outside `pkg.mod:Attr`.

    >>> resolve({"sqrt": "math:sqrt"}, "sqrt")(9.0)
    3.0
    >>> resolve({"sqrt": "math:sqrt"}, "cube", family="function")
    Traceback (most recent call last):
    ...
    collapsewatch.plugins.UnknownPlugin: function: got 'cube', expected one of sqrt, or 'pkg.mod:Attr'

    Raises:
        UnknownPlugin: nothing of that name can be loaded; the message lists the choices.
    """
    target = table.get(name, name)
    module, _, attr = target.partition(":")
    choices = ", ".join(sorted(table))
    if not attr:
        raise UnknownPlugin(f"{family}: got {name!r}, expected one of {choices}, or 'pkg.mod:Attr'")
    try:
        found: Any = importlib.import_module(module)
        for part in attr.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UnknownPlugin(
            f"{family}: got {name!r}, which does not load ({error}); expected one of {choices}, or 'pkg.mod:Attr'"
        ) from error
    return found
