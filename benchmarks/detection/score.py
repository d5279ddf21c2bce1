"""From first alarms to a row of the table: false alarms, recall, lead, attribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from latent import half_step
from plan import COLLAPSES, Plan
from scipy.stats import chi2


@dataclass(frozen=True)
class Truth:
    """What a run really does: when its collapse begins and when structural success has halved (0: never)."""

    plan: Plan
    logged: np.ndarray  # (T,) steps that were logged
    half: int

    @classmethod
    def of(cls, plan: Plan, logged: np.ndarray) -> Truth:
        return cls(plan, logged, half_step(plan))

    @property
    def collapsed(self) -> bool:
        return self.plan.kind in COLLAPSES and self.half > 0

    def at_risk(self, alarm: int) -> int:
        """Logged steps on which an alarm would have been false; the first alarm (0: none) ends the count."""
        before = self.logged < self.plan.onset
        return int((before & (self.logged <= alarm)).sum() if alarm else before.sum())


def interval(count: int, exposure: float) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson rate per unit of exposure.

    >>> [round(x, 2) for x in interval(0, 10.0)], [round(x, 2) for x in interval(8, 21.2)]
    ([0.0, 0.37], [0.16, 0.74])
    """
    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return float(low / exposure), float(chi2.ppf(0.975, 2 * count + 2) / 2 / exposure)


def score(truths: Sequence[Truth], alarms: Sequence[int]) -> dict[str, Any]:
    """One method on one split; `alarms` are the steps of each run's first alarm, 0 where there is none."""
    false = sum(0 < a < t.plan.onset for t, a in zip(truths, alarms, strict=True))
    risk = sum(t.at_risk(a) for t, a in zip(truths, alarms, strict=True))
    hits = [(t, a) for t, a in zip(truths, alarms, strict=True) if t.collapsed]
    # A run that alarmed before its collapse counts as missed; a miss leads by less than any hit.
    found = [(t, a) for t, a in hits if a >= t.plan.onset]
    leads = sorted(t.half - a if a >= t.plan.onset else -np.inf for t, a in hits)
    low, high = interval(false, risk / 10_000)
    return {
        "false_alarms": false,
        "at_risk_steps": risk,
        "fa_per_10k": false / risk * 10_000,
        "fa_low": low,
        "fa_high": high,
        "collapses": len(hits),
        "recall": len(found) / max(len(hits), 1),
        "early_recall": sum(lead >= 1 for lead in leads) / max(len(hits), 1),
        "early_slow": _early(hits, "instant"),
        "by_half": sum(lead >= 0 for lead in leads) / max(len(hits), 1),
        "delay": median([a - t.plan.onset for t, a in found]) if found else None,
        "lead": _finite(median(leads)) if leads else None,
        "lead_p10": _finite(leads[len(leads) // 10]) if leads else None,
    }


def _early(hits: Sequence[tuple[Truth, int]], but: str) -> float:
    """Early recall without one kind of collapse."""
    own = [t.plan.onset <= a < t.half for t, a in hits if t.plan.kind != but]
    return sum(own) / max(len(own), 1)


def _finite(lead: float) -> float | None:
    return float(lead) if np.isfinite(lead) else None


def by_kind(truths: Sequence[Truth], alarms: Sequence[int]) -> dict[str, dict[str, Any]]:
    """`score` per collapse, with the median number of steps from the onset to half of the success."""
    out = {}
    for kind in COLLAPSES:
        own = [(t, a) for t, a in zip(truths, alarms, strict=True) if t.plan.kind == kind and t.collapsed]
        if own:
            out[kind] = score([t for t, _ in own], [a for _, a in own])
            out[kind]["half_after"] = median(t.half - t.plan.onset for t, _ in own)
    return out
