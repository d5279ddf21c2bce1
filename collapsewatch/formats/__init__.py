"""Chat formats: the control tokens, slots and parser of each model family.

To add one: write `formats/<name>.py` with a subclass of `formats.base.ChatFormat` that sets `name`, `markers`
and `legal` and defines `body` (the text of one call to a `Call` or a `Reason`); override `parse` only where
calls do not stand between an opening and a closing marker. Then add its line to `FORMATS`: the contract tests
run over that table. A format outside this package needs no line: name it `pkg.mod:Class`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..plugins import resolve

if TYPE_CHECKING:
    from .base import ChatFormat

FORMATS: dict[str, str] = {
    "hermes": "collapsewatch.formats.hermes:Hermes",
}


@cache
def format_named(name: str) -> ChatFormat:
    """The chat format of that name, or of that outside `pkg.mod:Class`; one instance per name.

    Raises:
        UnknownPlugin: nothing of that name can be loaded; the message lists the choices.
    """
    found: ChatFormat = resolve(FORMATS, name, "chat format")()
    return found
