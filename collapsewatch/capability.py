"""Is what the model can do still there when its format is lost? Read off the fixed and the alternate probe.

In the paper the collapsed model scores 0.0 in its trained call format, and in another what the untrained model scores
there (arXiv 2606.26027, table 2): the format was lost, not the capability. Both are judged against the run's own
start: how well a model does in a format that it was never trained in says nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, Literal, NamedTuple

from .curves import Curve

KEPT = 0.8  # of the start: held, as of the best reward in a run that has recovered
LOST = 0.5  # of the start: lost, as structure is where every other turn is broken
LAST = 3  # scorings whose median is the end: one freak step is none, and more would reach back before it

TRAINED = "fixed/turn"
State = Literal["held", "worn", "lost"]


class Part(NamedTuple):
    """What a probe said at the start and at the end of a run: the probability that something comes out right."""

    probe: str
    start: float
    end: float

    @property
    def kept(self) -> float:
        """The share of the start that is left."""
        return self.end / self.start if self.start > 0 else 0.0

    @property
    def state(self) -> State:
        return "held" if self.kept >= KEPT else "lost" if self.kept < LOST else "worn"

    def to_dict(self) -> dict[str, Any]:
        return {"probe": self.probe, "start": self.start, "end": self.end, "kept": self.kept, "state": self.state}


class Capability(NamedTuple):
    """What is left of the trained format, and of what can be done without it.

    Whole turns in the trained format and in another one, where that was scored. Else the control tokens of the
    trained format, and what its calls say where they stand.
    """

    format: Part
    without: Part

    @property
    def verdict(self) -> Literal["intact", "lost", "unknown"]:
        """What still comes out right in either format can be done; `unknown` in between."""
        shown = {self.without.state} | ({self.format.state} if self.format.probe == TRAINED else set())
        return "intact" if "held" in shown else "unknown" if "worn" in shown else "lost"

    def to_dict(self) -> dict[str, Any]:
        """The object of `analyze --json`."""
        told = {"verdict": self.verdict, "format": self.format.to_dict(), "without": self.without.to_dict()}
        return told | {"said": sentence(self)}


def capability(curves: Mapping[str, Curve]) -> Capability | None:
    """What the probes of a run tell; None where they scored it fewer than twice."""
    for names in ((TRAINED, "alternate/turn"), ("fixed/format", "fixed/content")):
        format, without = (_part(curves, name) for name in names)
        if format and without:
            return Capability(format, without)
    return None


def sentence(found: Capability) -> str:
    """The same in words, without a full stop.

    >>> print(sentence(Capability(Part("fixed/turn", 0.8, 0.01), Part("alternate/turn", 0.7, 0.65))))
    capability intact, format lost: turns right in the trained format 0.80 -> 0.01, in another 0.70 -> 0.65
    """
    how = {"intact": "intact", "lost": "lost", "unknown": "worn"}[found.verdict]
    format, without = (f"{part.start:.2f} -> {part.end:.2f}" for part in found)
    if found.format.probe == TRAINED:
        what = f"turns right in the trained format {format}, in another {without}"
    else:
        what = f"control tokens right in {format} of turns, calls inside them {without}"
    return f"capability {how}, format {found.format.state}: {what}"


def _part(curves: Mapping[str, Curve], probe: str) -> Part | None:
    curve = curves.get(probe)
    if curve is None or len(curve.values) < 2:
        return None
    return Part(probe, curve.values[0], median(curve.values[1:][-LAST:]))
