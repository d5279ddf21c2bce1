"""Every rank's measure of one step to one StepRecord.

Rates and hazards are ratio estimates over turns, with standard errors clustered by prompt group, because the
rollouts of one prompt stand or fall together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .records import ControlRow, Observation, RolloutRow, StepRecord, TurnRow
from .selftest import deviations

Sums = Mapping[str, Mapping[int, tuple[float, float]]]
"""Numerator and denominator by stream and prompt group: all of a rank's measure that has to be gathered."""


@dataclass(frozen=True, slots=True)
class RankMeasure:
    """What one rank adds to a step: its sums, and its own detail rows."""

    sums: Sums
    control: tuple[ControlRow, ...]
    turns: tuple[TurnRow, ...]
    rollouts: tuple[RolloutRow, ...]


_SCALARS = frozenset(["reward", "reward_square", "env_errors", "turns", "entropy", "lenient_parse_rate"])
_SCALAR_GROUPS = tuple(
    f"{group}/"
    for group in (
        "completions",
        "entropy",
        "logit_pressure",
        "logp",
        "probe",
        "sampling",
        "structure",
        "tools",
        "turns",
    )
)


def combine(
    ranks: Sequence[Sums],
    detail: RankMeasure,
    step: int,
    time: float,
    metrics: Mapping[str, float] | None = None,
) -> StepRecord:
    """One step's record from every rank's sums; the detail rows are this rank's own.

    Every rank that combines the same sums gets the same observations, so every rank decides alike.
    """
    merged: dict[str, dict[int, tuple[float, float]]] = {}
    # Sorted, so that the order does not depend on which rank saw a slot first.
    for stream in sorted({stream for rank in ranks for stream in rank}):
        into = merged.setdefault(stream, {})
        for rank in ranks:
            for group, (top, bottom) in _groups(rank, stream).items():
                a, b = into.get(group, (0.0, 0.0))
                into[group] = (a + top, b + bottom)
    estimates = {name: _estimate(name, groups) for name, groups in merged.items() if groups}
    scalars = {name: estimate.value for name, estimate in estimates.items() if _is_scalar(name)}
    scalars.pop("reward_square", None)
    if "probe/calibration" in scalars:
        drawn, variance = np.sum(list(merged["probe/calibration"].values()), axis=0).tolist()
        scalars["probe/calibration"] = deviations(drawn, variance)
    scalars.update(_reward_metrics(merged))
    if "parse_failure" in estimates:
        scalars["parse_rate"] = 1.0 - estimates["parse_failure"].value
    if "hazard" in estimates:
        scalars["hazard"] = estimates["hazard"].value
    observations = tuple(Observation(name, *estimate) for name, estimate in estimates.items() if not _is_scalar(name))
    return StepRecord(
        step,
        time,
        {**scalars, **(metrics or {})},
        observations,
        detail.control,
        detail.turns,
        detail.rollouts,
    )


def _is_scalar(name: str) -> bool:
    """Is it a metric, and no stream that a detector reads?"""
    return name in _SCALARS or name.startswith(_SCALAR_GROUPS)


def _groups(rank: Sums, stream: str) -> Mapping[int, tuple[float, float]]:
    """A rank's sums of one stream. A rank without a position in some slot has turns without hazard there."""
    if stream in rank or not stream.startswith("hazard"):
        return rank.get(stream, {})
    return {group: (0.0, turns) for group, (_, turns) in rank.get("hazard", {}).items()}


def _estimate(stream: str, groups: Mapping[int, tuple[float, float]]) -> _Estimate:
    """A stream's value: a hazard as the rate at which that share of turns would break, else the ratio itself."""
    found = _ratio(groups)
    if not stream.startswith("hazard"):
        return found
    whole = max(1.0 - found.value, 1e-12)  # share of turns that will not break
    return _Estimate(-math.log(whole), found.n, found.stderr / whole)


class _Estimate(NamedTuple):
    value: float
    n: int
    stderr: float


def _ratio(groups: Mapping[int, tuple[float, float]]) -> _Estimate:
    """Ratio of sums over prompt groups, with the linearised standard error of a cluster sample."""
    pairs = np.array([groups[key] for key in sorted(groups)], float)  # (G, 2)
    top, bottom = pairs.sum(axis=0)
    value = top / bottom
    n = len(pairs)
    if n < 2:
        return _Estimate(float(value), n, 0.0)
    residual = pairs[:, 0] - value * pairs[:, 1]
    return _Estimate(float(value), n, float(math.sqrt(n / (n - 1) * (residual**2).sum()) / bottom))


def _reward_metrics(sums: Mapping[str, Mapping[int, tuple[float, float]]]) -> dict[str, float]:
    """`reward_std` over all rollouts and `frac_reward_zero_std` over groups, as TRL names them."""
    first, second = sums.get("reward", {}), sums.get("reward_square", {})
    if not first:
        return {}
    pairs = np.array([(first[g][0], second[g][0], first[g][1]) for g in sorted(first)], float)  # (G, 3)
    mean_square = pairs[:, 1] / pairs[:, 2]
    spread = mean_square - (pairs[:, 0] / pairs[:, 2]) ** 2
    total, square, n = pairs.sum(axis=0)
    variance = max(square / n - (total / n) ** 2, 0.0) * n / max(n - 1, 1)
    same = spread <= 1e-12 * np.maximum(mean_square, 1.0)  # rounding grows with the square
    return {"reward_std": math.sqrt(variance), "frac_reward_zero_std": float(same.mean())}
