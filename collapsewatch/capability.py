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

    `without`: turns in another format where that was scored, else what calls say where their frame is given.
    """

    format: Part
    without: Part

    @property
    def verdict(self) -> Literal["intact", "lost", "unknown"]:
        """`unknown` in between."""
        states: dict[State, Literal["intact", "lost", "unknown"]] = {"held": "intact", "lost": "lost"}
        return states.get(self.without.state, "unknown")

    def to_dict(self) -> dict[str, Any]:
        """The object of `analyze --json`."""
        return {
            "verdict": self.verdict,
            "format": self.format.to_dict(),
            "without": self.without.to_dict(),
            "said": sentence(self),
        }


def capability(curves: Mapping[str, Curve]) -> Capability | None:
    """What the probes of a run tell; None where they scored it fewer than twice."""
    frame = _part(curves, "fixed/format")
    without = _part(curves, "alternate/turn") or _part(curves, "fixed/content")
    return Capability(frame, without) if frame and without else None


def sentence(found: Capability) -> str:
    """The same in words, without a full stop.

    >>> print(sentence(Capability(Part("fixed/format", 0.98, 0.02), Part("alternate/turn", 0.8, 0.7))))
    capability intact, format lost: control tokens right in 0.98 -> 0.02 of turns, turns in another format 0.80 -> 0.70
    """
    how = {"intact": "intact", "lost": "lost", "unknown": "worn"}[found.verdict]
    what = "turns in another format" if found.without.probe == "alternate/turn" else "calls inside their frame"
    frame, without = (f"{part.start:.2f} -> {part.end:.2f}" for part in found)
    return f"capability {how}, format {found.format.state}: control tokens right in {frame} of turns, {what} {without}"


def _part(curves: Mapping[str, Curve], probe: str) -> Part | None:
    curve = curves.get(probe)
    if curve is None or len(curve.values) < 2:
        return None
    return Part(probe, curve.values[0], median(curve.values[1:][-LAST:]))
