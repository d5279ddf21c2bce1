"""`hint`: the first rollouts of a group are sampled with the task's hint in the system message (HBG).

The hint is taken out for the update, as in the paper: what was sampled with it is trained on without it, off-policy by
construction. In the paper those runs collapsed.
Source: arXiv 2606.26027; released code, `manager.py` (`hint_num` 2 of 8, `hint_pos` system).
"""

from __future__ import annotations

from typing import ClassVar

from .base import Guide
from .off_policy import OffPolicy


class Hint(OffPolicy):
    """Shows the task's hint to the first `count` rollouts of each group, while they are sampled."""

    name: ClassVar[str] = "hint"
    guided: ClassVar[Guide] = Guide(hint=True)

    def __init__(self, count: int = 2) -> None:
        super().__init__(count)
