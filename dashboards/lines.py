"""Which lines are followed of a run, by the table they stand in, and how their values are drawn."""

from __future__ import annotations

from typing import NamedTuple

from collapsewatch.records import Structure
from collapsewatch.slices import EVIDENCE, HAZARDS, ILLEGAL, LEGAL, PRESSURE, metric_lines
from collapsewatch.words import number

STATES = tuple(f"structure/{state}" for state in Structure)
HELD = {
    "fixed/turn": "fixed dialogues",
    "alternate/turn": "the same in another format",
    "eval/reward": "held-out tasks",
    "eval/format_ood/reward": "those in another format",
    "eval/content_ood/reward": "tasks with other tools",
}
"""What is looked at every so many steps beside training, in words: turns that come out right, and rewards."""
METRICS = (
    "reward",
    "parse_rate",
    *STATES,
    *HELD,
    "entropy",
    "kl",
    "grad_norm",
    "completions/mean_length",
    "tools/call_frequency",
)

LINES = {
    "metrics": (metric_lines(METRICS, PRESSURE),),
    "observations": (HAZARDS,),
    "evidence": (EVIDENCE,),
    "control": (ILLEGAL, LEGAL),
}
"""Lines by table; a page that needs a table has its lines followed."""

OVERVIEW = ("steps", "metrics", "observations", "evidence", "alarms", "interventions", "events")
"""The tables that the first page needs."""

MARKS = {"alarm": 1.0, "cleared": 1.0, "intervention": 0.86, "band": 1.0}
"""What happened, and how high in a panel each stands: an alarm and what it asked for often share a step."""

HAZARD_FLOOR = 1e-6
"""A hazard below this is drawn here, since a logarithmic axis has no zero; the hover text says the true value."""

EXCESS_RANGE = (-8.0, 20.0)
"""Log evidence less its bound is drawn within these, the same in every run: beyond them more decides nothing."""


class Dot(NamedTuple):
    """One point of one line; `y` is None where the line breaks, `text` is what hovering shows, if not the value."""

    x: int
    y: float | None
    text: str = ""

    @property
    def said(self) -> str:
        """What hovering shows."""
        return self.text or ("" if self.y is None else number(self.y))
