"""The simulator that detection is measured on, and that the measurement can tell good from bad."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "detection"))

import charts
import field
import ours
import series
from latent import batches, half_step, smooth, success, turn_hazard
from plan import CELLS, COLLAPSES, KINDS, POSITIONS, SPLITS, plan
from score import Truth, interval, score
from simulate import Run, estimate, simulate

from collapsewatch.combine import RankMeasure, combine
from collapsewatch.detectors import spec


def same(a: Run, b: Run, rows: int) -> bool:
    """Whether two runs agree bit for bit in their first rows."""
    assert a.streams.keys() == b.streams.keys() and a.metrics.keys() == b.metrics.keys()
    streams = all(
        np.array_equal(x[:rows], y[:rows]) for s in a.streams for x, y in zip(a.streams[s], b.streams[s], strict=True)
    )
    return streams and all(np.array_equal(a.metrics[m][:rows], b.metrics[m][:rows]) for m in a.metrics)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_its_seed_and_more_steps_leave_the_earlier_ones(kind: str) -> None:
    drawn = plan("train", 7, kind)
    whole, again, part = simulate(drawn), simulate(plan("train", 7, kind)), simulate(drawn, drawn.steps // 2)
    assert list(whole.records()) == list(again.records())
    assert 0 < len(part.steps) < len(whole.steps) and same(whole, part, len(part.steps))
    assert not same(whole, simulate(plan("test", 7, kind)), 5)


def test_sampled_breaks_match_the_hazards_whatever_they_are() -> None:
    """Of slots with one position the mean of 1 - exp(-hazard) is the share that breaks; of longer ones half to all."""
    drawn, shares = plan("train", 3, "spike"), []
    nothing_else = np.array([9.0, -30, -30, -30, -30, -30])  # calls that break by a cell or not at all
    drawn = replace(drawn, legal=nothing_else, trend=drawn.trend * 0, bumps=(), jumps=(), groups=60, turns=4)
    alone = np.array([POSITIONS[s] == 1 for _, s in CELLS])
    for lift in (0.0, 3.0, 6.0):  # hardly any turn breaks; some; most
        for cells in (alone, ~alone):
            x = np.where(cells, drawn.cells + lift, -40.0)
            run = simulate(replace(drawn, cells=x, steps=200, onset=201))
            bad = (run.streams["polluted"][0] + run.streams["collapsed"][0]).mean()
            told = -np.expm1(-run.streams["hazard"][0]).mean()
            turns = 60 * drawn.rollouts * 4 * len(run.steps)
            error = 5 * math.sqrt(max(bad, 1 / turns) / turns)  # of a count whose variance is at most its mean
            least = bad if cells is alone else bad / 2
            assert least - error < told < bad + error
            shares.append(bad)
    assert 0 < min(shares) < 0.05 and max(shares) > 0.5


def test_the_true_success_is_what_sampling_without_noise_gives() -> None:
    drawn = plan("train", 11, "pollution")
    still = replace(drawn.noise, batch=0.0, prompt=0.0, jitter=0.0, outlier=0.0, missing=0.0)
    drawn = replace(drawn, noise=still, groups=60, turns=4, every=1)
    run = simulate(drawn)
    sampled = 1 - run.streams["polluted"][0] - run.streams["collapsed"][0]
    expected = success(smooth(drawn, drawn.steps))
    turns = 60 * drawn.rollouts * 4
    assert np.abs(sampled - expected).max() < 5 * math.sqrt(0.25 / turns)
    assert batches(drawn, 5)[0].any() == 0


def test_the_hazard_of_a_turn_is_the_sum_over_its_positions() -> None:
    x = np.linspace(-12, 4, len(CELLS))
    for c, (_, slot) in enumerate(CELLS):
        p = 1 / (1 + math.exp(-x[c]))
        assert turn_hazard(x)[c] == pytest.approx(POSITIONS[slot] * -math.log1p(-p), rel=1e-9)


def test_estimates_are_those_of_measuring() -> None:
    """The same sums through `combine`: value, prompt groups and clustered standard error."""
    rng = np.random.default_rng(0)
    bottom = rng.integers(0, 5, (40, 6))
    top = rng.binomial(bottom, 0.3)
    value, n, stderr = estimate(top, bottom)
    for t in range(40):
        groups = {g: (float(top[t, g]), float(bottom[t, g])) for g in range(6) if bottom[t, g]}
        (seen,) = combine([{"parse_failure": groups}], RankMeasure({}, (), (), ()), 1, 0.0).observations
        assert (seen.value, seen.n, seen.stderr) == pytest.approx((value[t], n[t], stderr[t]), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stream_is_one_that_detectors_know_and_adds_up(kind: str) -> None:
    for record in list(simulate(plan("stress", 5, kind), 60).records()):
        held = {o.stream: o.value for o in record.observations}
        assert {spec(name).name for name in held} == held.keys()
        assert all(o.n >= 1 and o.value >= 0 and math.isfinite(o.stderr) for o in record.observations)
        cells, tokens = ([v for n, v in held.items() if spec(n).weight_group == g] for g in ("cell", "token"))
        assert max(cells) <= max(tokens) + 1e-9 <= held["hazard"] + 2e-9  # a turn breaks but once
        assert -math.expm1(-held["hazard"]) <= sum(-math.expm1(-v) for v in tokens) + 1e-9


def test_collapses_halve_success_and_healthy_runs_do_not() -> None:
    for kind in COLLAPSES:
        halves = [half_step(plan("train", i, kind)) - plan("train", i, kind).onset for i in range(12)]
        assert sum(h > 0 for h in halves) >= 11, kind
    for kind in ("healthy", "content"):
        for i in range(5):
            drawn = plan("train", i, kind)
            assert success(smooth(drawn, drawn.steps)).min() > 0.25 and not Truth.of(drawn, np.arange(1, 9)).half


def test_scores_of_known_alarms() -> None:
    drawn = [plan("train", i, "spike") for i in range(3)] + [plan("train", 0, "healthy")]
    truths = [Truth.of(p, np.arange(1, p.steps + 1)) for p in drawn]
    on_time = [truths[0].half - 4, drawn[1].onset - 1, 0, 0]  # early, false, missed, quiet
    row = score(truths, on_time)
    assert (row["false_alarms"], row["recall"], row["early_recall"]) == (1, 1 / 3, 1 / 3)
    risk = [drawn[0].onset - 1, drawn[1].onset - 1, drawn[2].onset - 1, drawn[3].steps]
    assert row["at_risk_steps"] == sum(risk) and row["delay"] == truths[0].half - 4 - drawn[0].onset
    late = score(truths[:1], [truths[0].half])
    assert (late["recall"], late["early_recall"], late["lead"]) == (1, 0, 0)
    low, high = interval(8, 21.2)
    assert low < 8 / 21.2 < high and interval(0, 1)[0] == 0


def test_the_detection_finds_collapses_early_and_charts_without_a_tolerance_do_not() -> None:
    """24 collapses and 8 healthy runs: a detector that always, or never, alarms fails both floors."""
    data = field.make("train", 8, 3)
    found = [ours.watch(run) for run in data.runs()]
    row = score(data.truths, [f.step for f in found])
    assert row["collapses"] == 24 and row["at_risk_steps"] > 5000
    assert row["recall"] >= 0.9 and row["early_slow"] >= 0.85 and row["lead"] >= 10
    assert row["false_alarms"] <= 1
    told = ours.attribution(data.truths, found)
    assert told["token"] >= 0.9 and told["driver"] >= 0.9
    assert all((f.bounds[3] or math.inf) <= (f.bounds[0] or math.inf) for f in found)
    spread = [charts.z_score(s.scalar) for s in data.series]
    usual = score(data.truths, charts.alarms(data, spread, 3.0))
    assert usual["fa_per_10k"] > 100 and usual["early_recall"] < row["early_recall"] / 2


def test_the_excess_is_over_a_tolerance_fixed_before() -> None:
    key = np.full((60, len(series.KEY)), 0.004)
    key[50:, :] = 0.9
    beyond = series.excess(key)
    assert (beyond[5:50] < 0).all() and (beyond[50] > 0).all()
    changed = key.copy()
    changed[55] = 0.5
    assert np.array_equal(series.excess(changed)[:55], beyond[:55])


def test_a_smaller_split_is_part_of_a_larger_and_no_seed_is_shared() -> None:
    small, large = list(field.plans("test", 3, 1)), list(field.plans("test", 5, 2))
    assert {(p.kind, p.index) for p in small} < {(p.kind, p.index) for p in large}
    assert len({p.index for p in large}) == len(large) and len(set(SPLITS.values())) == len(SPLITS)


def test_peers_that_are_not_there_are_said_to_be(tmp_path: Path) -> None:
    data = field.make("train", 1, 1)
    assert field.peers(tmp_path, data, data) == dict.fromkeys(field.PEERS, "not installed")
