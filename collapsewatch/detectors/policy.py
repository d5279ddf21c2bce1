"""Hysteresis: from what detectors hold at each step to alarms that begin once, last, and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import sqrt
from statistics import fmean
from typing import Any

from ..records import Alarm, Driver, Evidence, Tier
from .base import Detector, drivers_of
from .streams import BAD_OUTCOMES, Observed, spec

CULPRIT = 0.05  # share of the evidence that makes a stream one of those that must calm down again
CAUSE = 0.2  # share of the evidence; chosen, not measured
HOLD_EVERY = 10  # steps between two rows of an alarm that is still true
LISTED = 8  # drivers listed in an alarm
OUTCOMES = BAD_OUTCOMES | {"no_call"}  # what must be within tolerance before any alarm clears
BROKEN = 0.5  # rate of a bad outcome that nobody may get used to: the hard limit's


class AlarmPolicy:
    """OK -> alarm -> hold -> cleared or rebaselined, for detectors that share one fate.

    An alarm clears after `clear_run` good steps in a row: no outcome beyond its tolerance on any of them, the means
    of its own streams well within theirs (single steps of few rollouts are noise). It is repeated as `hold` for at
    most `max_hold` steps, and after `rebaseline` steps in which nothing was done about it its level becomes the new
    normal, with a row that says so; but a run half of whose outcomes are bad is broken and has no new normal. For
    `refractory` steps after its end no new alarm begins. Steps are records: a log written every 5th step counts
    every 5th. Defaults: in a simulated closed loop leaving after 8 good steps cost 7.5 broken steps a run, after 3
    it flapped and cost 109.
    """

    def __init__(
        self,
        tier: Tier = Tier.ALARM,
        clear_run: int = 8,
        max_hold: int = 40,
        refractory: int = 10,
        rebaseline: int = 60,
    ) -> None:
        if not (clear_run > 0 and refractory >= 0 and 0 <= max_hold <= rebaseline):
            raise ValueError(
                f"alarm policy: got clear_run={clear_run}, max_hold={max_hold}, refractory={refractory}, "
                f"rebaseline={rebaseline}, expected clear_run > 0 and 0 <= max_hold <= rebaseline"
            )
        self.tier = tier
        self.clear_run, self.max_hold, self.refractory, self.rebaseline = (
            clear_run,
            max_hold,
            refractory,
            rebaseline,
        )
        self.reset()

    def reset(self) -> None:
        self.held = -1  # records since the alarm began; -1: no alarm
        self.idle = 0  # of those, since something was last done about it
        self.good: deque[dict[str, float]] = deque(maxlen=self.clear_run)
        """Of good steps in a row: each culprit's level as a share of what is calm."""
        self.wait = 0  # refractory records left
        self.culprits: set[str] = set()
        self.detector = ""
        self.onset = 0

    @property
    def state(self) -> str:
        """`ok`, the tier, or `hold`."""
        return "ok" if self.held < 0 else str(self.tier) if self.held == 0 else str(Tier.HOLD)

    def update(self, step: int, found: Sequence[tuple[Detector, Evidence]], observed: Observed) -> Alarm | None:
        """The alarm row of this step, if any; on `cleared` and `rebaselined` the caller resets detectors."""
        firing = [(d, e) for d, e in found if e.log_e >= e.log_bound]
        if self.held < 0:
            if self.wait > 0:
                self.wait -= 1
            elif firing:
                return self._begin(step, *firing[0], firing)
            return None
        self.held += 1
        self.idle += 1
        self._blame(firing)
        self._count_good(found, firing, observed)
        own = next(((d, e) for d, e in found if d.name == self.detector), found[0])
        if self._recovered():
            return self._end(Tier.CLEARED, step, *own)
        if self.idle >= self.rebaseline and not _broken(found):
            return self._end(Tier.REBASELINED, step, *own)
        if self.held <= self.max_hold and self.held % HOLD_EVERY == 0:
            return self._row(Tier.HOLD, step, *own)
        return None

    def acted(self) -> None:
        """Something was done about the run: how it fares under treatment is no new normal yet."""
        self.idle = 0

    def _begin(
        self, step: int, detector: Detector, evidence: Evidence, firing: list[tuple[Detector, Evidence]]
    ) -> Alarm:
        self.held = self.idle = 0
        self.good.clear()
        self.detector, self.onset = detector.name, detector.onset()
        self.culprits = set()
        self._blame(firing)
        return self._row(self.tier, step, detector, evidence)

    def _end(self, tier: Tier, step: int, detector: Detector, evidence: Evidence) -> Alarm:
        row = self._row(tier, step, detector, evidence)
        self.reset()
        self.wait = self.refractory
        return row

    def _blame(self, firing: list[tuple[Detector, Evidence]]) -> None:
        self.culprits |= {d.stream for _, e in firing for d in e.drivers if d.share >= CULPRIT}

    def _count_good(
        self,
        found: Sequence[tuple[Detector, Evidence]],
        firing: list[tuple[Detector, Evidence]],
        observed: Observed,
    ) -> None:
        asked = (self.culprits | OUTCOMES).intersection(observed.names)
        seen: dict[str, Driver] = {}
        for _, e in found:
            for d in drivers_of(e, asked):
                seen.setdefault(d.stream, d)
        shown = [d for d in seen.values() if d.stream in self.culprits]
        if shown:  # a step that shows none of the culprits is neither good nor bad
            # A token may fall silent because nothing is called any more: then the outcomes are what is bad.
            if any(d.level > d.tolerance for d in seen.values() if d.stream in OUTCOMES):
                self.good.clear()
            else:
                self.good.append({d.stream: d.level / _calm(d) for d in shown})

    def _recovered(self) -> bool:
        """Whether the last `clear_run` steps were good and each culprit, where it was seen, calm on average."""
        streams = {stream for levels in self.good for stream in levels}
        means = (fmean(levels[s] for levels in self.good if s in levels) for s in streams)
        return len(self.good) == self.clear_run and all(mean < 1 for mean in means)

    def _row(self, tier: Tier, step: int, detector: Detector, evidence: Evidence) -> Alarm:
        listed = tuple(d for d in evidence.drivers if d.share > 0)[:LISTED]
        kind = detector.failure or failure(listed)
        return Alarm(step, tier, detector.name, listed, self.onset, evidence.log_e, evidence.log_bound, kind)

    def state_dict(self) -> dict[str, Any]:
        return {
            "held": self.held,
            "idle": self.idle,
            "good": list(self.good),
            "wait": self.wait,
            "culprits": sorted(self.culprits),
            "detector": self.detector,
            "onset": self.onset,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held, self.idle, self.wait = state["held"], state["idle"], state["wait"]
        self.good = deque(state["good"], maxlen=self.clear_run)
        self.culprits, self.detector, self.onset = set(state["culprits"]), state["detector"], state["onset"]


def _broken(found: Sequence[tuple[Detector, Evidence]]) -> bool:
    return any(d.level >= BROKEN for _, e in found for d in drivers_of(e, BAD_OUTCOMES))


def _calm(driver: Driver) -> float:
    # Half way from baseline to tolerance on the log scale; a baseline near zero would make that unreachable.
    return max(driver.tolerance / 2, sqrt(driver.baseline * driver.tolerance))


def failure(drivers: Sequence[Driver]) -> str:
    """The failure that the evidence speaks for; '' without drivers.

    Token probabilities are named before outcomes once they hold `CAUSE` of the evidence: the outcome follows
    from them, and soon outweighs them.
    """
    causes = [d for d in drivers if spec(d.stream).kind != "rate"]
    shares: dict[str, float] = {}
    for d in causes if sum(d.share for d in causes) >= CAUSE else drivers:
        kind = spec(d.stream).failure
        shares[kind] = shares.get(kind, 0.0) + d.share
    return max(shares, key=lambda k: shares[k], default="")
