"""Curves: bounded however long the run, and nothing that stands out is lost."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.curves import LIMIT, NAMES, Curve, Curves
from collapsewatch.records import Observation, StepRecord


def curves(values: list[float], name: str = "reward") -> dict[str, Curve]:
    kept = Curves()
    for step, value in enumerate(values):
        kept.take(StepRecord(step, 0.0, {name: value}))
    return dict(kept.done())


@given(st.lists(st.floats(), max_size=300), st.integers(2, 40))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values: list[float], limit: int) -> None:
    finite = [(step, value) for step, value in enumerate(values) if math.isfinite(value)]
    found = curves(values)
    if not finite:
        assert found == {}
        return
    whole, thin = found["reward"], found["reward"].thinned(limit)
    assert list(zip(whole.steps, whole.values, strict=True)) == finite  # short enough to be kept as it is
    assert (thin.count, thin.lost) == (len(finite), len(values) - len(finite))
    assert len(thin.steps) <= limit + 2
    points = list(zip(thin.steps, thin.values, strict=True))
    assert points == [point for point in finite if point in set(points)]  # in order, none made up
    assert {finite[0], finite[-1]} <= set(points)
    assert (min(thin.values), max(thin.values)) == (min(whole.values), max(whole.values))


def test_a_long_run_takes_no_more_than_a_short_one() -> None:
    values = [math.sin(t / 50) for t in range(20_000)]
    values[12_345] = 9.0
    (curve,) = curves(values).values()
    assert len(curve.steps) <= LIMIT + 2 and curve.count == 20_000
    assert 9.0 in curve.values and curve.steps[curve.values.index(9.0)] == 12_345


def test_a_run_of_many_streams_keeps_the_first_ones() -> None:
    kept = Curves()
    kept.take(StepRecord(1, 0.0, {"unknown": 1.0}, tuple(Observation(f"hazard:{i}", 0.1, 8) for i in range(2 * NAMES))))
    assert list(kept.done()) == [f"hazard:{i}" for i in range(NAMES)]
