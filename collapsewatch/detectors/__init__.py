"""Detectors: one small file each, one line in `DETECTORS`; `Detection` binds them for one run.

To add one, subclass `base.Detector` in a new file and list it here; outside code is named `pkg.mod:Class`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plugins import resolve
from ..records import Alarm, Evidence, StepRecord, Tier
from .base import Detector
from .bets import Bets, Bettor
from .policy import AlarmPolicy
from .streams import Observed, StreamSpec, UnknownStream, spec

DETECTORS: dict[str, str] = {
    "e_detector": "collapsewatch.detectors.e_detector:BettingEDetector",
    "hard_limit": "collapsewatch.detectors.hard_limit:HardLimit",
    "health": "collapsewatch.detectors.health:HealthCheck",
    "watch": "collapsewatch.detectors.e_detector:WatchEDetector",
}
FA_PER_10K = 10.0
"""False alarms per 10,000 steps that the e-detector may raise at most: 50 found nothing earlier (docs/detection.md)."""

__all__ = [
    "DETECTORS",
    "FA_PER_10K",
    "AlarmPolicy",
    "Detection",
    "Detector",
    "StreamSpec",
    "UnknownStream",
    "build",
    "spec",
]


def build(names: Sequence[str] = tuple(DETECTORS), fa_per_10k: float = FA_PER_10K) -> list[Detector]:
    """The detectors of these names, given a false-alarm budget.

    Raises:
        UnknownPlugin: a name that is neither listed nor `pkg.mod:Class`.
    """
    built: list[Detector] = [resolve(DETECTORS, n, "detector").from_budget(fa_per_10k) for n in names]
    return built


class Detection:
    """All detectors of one run behind one hysteresis; the monitor feeds it live, `analyze` replays it.

    Detectors of tier `alarm` share one state. Each of tier `watch` has its own, and keeps quiet while an
    alarm holds.
    """

    def __init__(self, detectors: Sequence[Detector] | None = None, policy: AlarmPolicy | None = None) -> None:
        self.detectors = list(build() if detectors is None else detectors)
        self.policy = policy or AlarmPolicy()
        self.loud = [d for d in self.detectors if d.tier is Tier.ALARM]
        self._observed = Observed()
        betting = [d for d in self.detectors if isinstance(d, Bettor)]
        bets = Bets([d.null for d in betting])
        for number, d in enumerate(betting):
            d.share(bets, number)
        self.quiet = [(d, AlarmPolicy(Tier.WATCH)) for d in self.detectors if d.tier is Tier.WATCH]

    @property
    def state(self) -> str:
        """`ok`, `alarm` or `hold`."""
        return self.policy.state

    def update(self, record: StepRecord) -> tuple[list[Alarm], list[Evidence]]:
        """Read one record: the alarm rows it raises and what every detector holds after it."""
        observed = self._observed = Observed.of(record.observations, self._observed)
        held = {d.name: d.update(record.step, observed) for d in self.detectors}
        alarms: list[Alarm] = []
        if self.loud:
            row = self.policy.update(record.step, [(d, held[d.name]) for d in self.loud], observed)
            if row is not None:
                alarms.append(row)
                for d in self.loud:
                    _after(row.tier, d)
        for d, policy in self.quiet:
            row = policy.update(record.step, [(d, held[d.name])], observed)
            if row is not None:
                _after(row.tier, d)
                if row.tier is Tier.WATCH and self.state == "ok":
                    alarms.append(row)
        return alarms, list(held.values())

    def first_mover(self) -> str:
        """The stream that moved first, as the loud detectors see it now; '' when none can tell."""
        return next((name for d in self.loud if (name := d.first_mover())), "")

    def mark_event(self, step: int, name: str) -> None:
        """An announced change: baselines start again with the next record, unless an alarm stands.

        What is broken is no new normal: an intervention, or the learning rate it lowers, must not talk the
        alarm away that asked for it. It puts off the end of an alarm that nothing helps against.
        """
        if self.state != "ok":
            self.policy.acted()
            return
        for d in self.detectors:
            d.mark_event(step, name)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, keyed by detector."""
        return {
            "detectors": {d.name: d.state_dict() for d in self.detectors},
            "policy": self.policy.state_dict(),
            "quiet": {d.name: p.state_dict() for d, p in self.quiet},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit for bit where `state_dict` was taken.

        Raises:
            ValueError: the state is of other detectors.
        """
        have, got = sorted(d.name for d in self.detectors), sorted(state["detectors"])
        if have != got:
            raise ValueError(f"detection state: got detectors {', '.join(got)}, expected {', '.join(have)}")
        for d in self.detectors:
            d.load_state_dict(state["detectors"][d.name])
        self.policy.load_state_dict(state["policy"])
        for d, p in self.quiet:
            p.load_state_dict(state["quiet"][d.name])


def _after(tier: Tier, detector: Detector) -> None:
    if tier is Tier.CLEARED:
        detector.forget()
    elif tier is Tier.REBASELINED:
        detector.reset()
