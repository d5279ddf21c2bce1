"""Detectors: exact properties, a scalar oracle, measured false alarms, pinned alarm steps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.detectors import DETECTORS, AlarmPolicy, Detection, Detector, UnknownStream, build, spec
from collapsewatch.detectors.baseline import CREEP, SelfStartingBaseline
from collapsewatch.detectors.e_detector import BettingEDetector
from collapsewatch.detectors.hard_limit import HardLimit
from collapsewatch.detectors.health import HealthCheck
from collapsewatch.detectors.policy import failure
from collapsewatch.detectors.streams import BAD_OUTCOMES, FAILURES, WEIGHTS, Observed, StreamTable
from collapsewatch.plugins import UnknownPlugin
from collapsewatch.records import Driver, Evidence, Observation, StepRecord, Tier

NAMES = [
    "hazard",
    "hazard:<tool_call>",
    "hazard@text",
    "hazard:<|im_end|>@open",
    "polluted",
    "no_end",
    "no_call",
]


def record(step: int, n: int = 16, **rates: float) -> StepRecord:
    return StepRecord(step, 0.0, {}, tuple(Observation(s, v, n) for s, v in rates.items()))


def spiking(seed: int, steps: int = 260, onset: int = 150, rate: float = 0.1, groups: int = 16) -> list[StepRecord]:
    """A run whose illegal emissions grow by `rate` nat per step of log-odds from `onset` on."""
    rng = np.random.default_rng(seed)
    out = []
    for t in range(1, steps + 1):
        odds = math.log(0.01 / 0.99) + 0.3 * rng.standard_normal() + max(0.0, min(8.0, rate * (t - onset)))
        p = 1 / (1 + math.exp(-odds))
        hazard = -0.3 * math.log1p(-p)
        values = {
            "hazard": hazard,
            "hazard:<tool_call>": 0.7 * hazard,
            "hazard:<tool_call>@text": 0.5 * hazard,
        }
        values["polluted"] = rng.binomial(groups * 8, p) / (groups * 8)
        values["truncated"] = rng.binomial(groups * 8, 0.03) / (groups * 8)
        values["parse_failure"] = rng.binomial(groups * 8, 0.08) / (groups * 8)
        out.append(record(t, groups, **values))
    return out


def rows(records: list[StepRecord], detection: Detection | None = None) -> list[tuple[int, str, str]]:
    detection = detection or Detection()
    alarms = [a for r in records for a in detection.update(r)[0]]
    return [(a.step, str(a.tier), a.detector) for a in alarms]


# streams


@pytest.mark.parametrize(
    ("name", "group", "token", "slot"),
    [
        ("hazard", "total", "", ""),
        ("hazard:<tool_call>", "token", "<tool_call>", ""),
        ("hazard@text", "slot", "", "text"),
        ("hazard:<@odd>@open", "cell", "<@odd>", "open"),
        ("hazard:<@odd>", "token", "<@odd>", ""),
        ("hazard:a:b@c", "token", "a:b@c", ""),
        ("no_end", "legal", "", ""),
        ("no_call", "call_rate", "", ""),
    ],
)
def test_a_stream_name_says_its_group_token_and_slot(name: str, group: str, token: str, slot: str) -> None:
    found = spec(name)
    assert (found.weight_group, found.token, found.slot) == (group, token, slot)


@pytest.mark.parametrize(
    "name", ["reward", "hazard:", "hazard:@text", "hazard@nowhere", "", "hazards", "polluted@text"]
)
def test_an_unknown_stream_is_an_error_that_lists_the_choices(name: str) -> None:
    with pytest.raises(UnknownStream, match=r"expected one of hazard, .*parse_failure"):
        spec(name)


def test_every_outcome_names_its_failure() -> None:
    assert set(FAILURES) >= BAD_OUTCOMES
    assert spec("hazard:<tool_call>@text").failure == "control_token_spike"


@given(st.lists(st.sampled_from([*NAMES, "reopen", "truncated", "hazard:a", "hazard:b"]), min_size=1, unique=True))
def test_weights_sum_to_one_and_never_grow_when_a_stream_joins(names: list[str]) -> None:
    table = StreamTable()
    before = np.zeros(0)
    for name in names:
        table.add(name)
        after = table.weights()
        assert after.sum() == pytest.approx(1.0)
        assert np.all(after[:-1] <= before + 1e-12)
        before = after
    groups = {spec(n).weight_group for n in names}
    total = sum(WEIGHTS[g] for g in groups)
    for g in groups:
        share = sum(w for w, n in zip(before, names, strict=True) if spec(n).weight_group == g)
        assert share == pytest.approx(WEIGHTS[g] / total)


# e-detector


def scalar_log_e(values: list[float], fractions: tuple[float, ...] = (0.1, 0.3, 0.6, 0.9)) -> list[tuple[float, float]]:
    """(E, onset) of a lone `polluted` stream of 16 groups, in plain Python, wealth without logarithms."""
    level, scale, low, count, gate = 0.0, 0.5, 0.0, 0, 0
    normal, normal_low = 0.0, 0.0
    wealth, since = [0.0] * len(fractions), [0.0] * len(fractions)
    out = []
    for t, y in enumerate(values, 1):
        tolerance = min(max(0.02, 3 * max(normal, 0.0), 1e-4), 0.995)
        old = sum(wealth)
        if count >= 3:
            for k, f in enumerate(fractions):
                stay = wealth[k] / (wealth[k] + 1)
                since[k] = stay * since[k] + (1 - stay) * t
                wealth[k] = (wealth[k] + 1) * (1 + f * (y - tolerance) / tolerance)
        mean = sum(wealth) / len(fractions)
        out.append((mean, sum(w * o for w, o in zip(wealth, since, strict=True)) / sum(wealth) if mean else 0.0))
        gate = gate + 1 if mean > 150 and sum(wealth) > old else 0
        if 0 < gate <= 40:
            continue
        x = math.log(y + 0.01)
        count += 1
        if count == 1:
            level = low = normal_low = x
            normal = y
            continue
        gain = max(0.05, 1 / count)
        log_normal = math.log(normal + gain * (min(y, math.exp(level + 2.5) - 0.01) - normal) + 0.01)
        if count > 10:
            log_normal = min(log_normal, normal_low + 0.005 + 0.5 * scale)
        normal_low = min(normal_low + 0.005, log_normal) if count > 10 else log_normal
        normal = math.exp(log_normal) - 0.01
        move = max(-2.5 * scale, min(2.5 * scale, x - level))
        level += gain * move
        if count > 10:
            level = min(level, low + 0.005 + 0.5 * scale)
        scale = min(1.0, max(0.1, scale + gain * (1.25 * abs(move) - scale)))
        low = min(low + 0.005, level) if count > 10 else level
    return out


@pytest.mark.parametrize("seed", range(4))
def test_one_stream_agrees_with_a_scalar_recomputation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.binomial(128, 0.02, 120) / 128).tolist() + (rng.binomial(128, 0.15, 30) / 128).tolist()
    detector = BettingEDetector()
    for t, (y, (e, onset)) in enumerate(zip(values, scalar_log_e(values), strict=True), 1):
        held = detector.update(t, [Observation("polluted", y, 16)])
        if e > 0:
            assert held.log_e == pytest.approx(math.log(e), abs=1e-8)
            assert detector.onset() == pytest.approx(onset, abs=0.5 + 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=40))
def test_evidence_grows_by_at_most_the_best_bet_and_shares_sum_to_one(steps: list[list[float]]) -> None:
    detector = BettingEDetector()
    before = -math.inf
    for t, values in enumerate(steps, 1):
        held = detector.update(t, [Observation(s, v, 4) for s, v in zip(NAMES, values, strict=False)])
        most = max(1 + 0.9 * (1 - d.tolerance) / d.tolerance for d in held.drivers)
        assert held.log_e <= np.logaddexp(before, 0.0) + math.log(most) + 1e-9
        shares = sum(d.share for d in held.drivers)
        assert shares == pytest.approx(1.0 if t > 3 else 0.0)
        before = held.log_e


def test_at_the_tolerance_the_next_evidence_is_one_more_in_expectation() -> None:
    """Exactly, not by sampling: two streams of 0 or 1 whose means are their tolerances, all four outcomes."""
    rng = np.random.default_rng(3)
    detector = BettingEDetector()
    for t in range(1, 40):
        state = detector.state_dict()
        held = detector.update(t, [Observation(s, 0.04 * rng.random(), 16) for s in ("polluted", "hazard")])
        if t < 6:
            continue
        mean = {d.stream: d.tolerance for d in held.drivers}
        before = BettingEDetector()
        before.load_state_dict(state)
        evidence = math.exp(before.update(t - 1, []).log_e)
        expected = 0.0
        for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
            p, h = mean["polluted"], mean["hazard"]
            chance = (p if first else 1 - p) * (h if second else 1 - h)
            after = BettingEDetector()
            after.load_state_dict(state)
            # A hazard of infinity is read as 1.
            seen = [
                Observation("polluted", first, 16),
                Observation("hazard", math.inf if second else 0.0, 16),
            ]
            expected += chance * math.exp(after.update(t, seen).log_e)
        assert expected == pytest.approx(evidence + 1, rel=1e-9)


def test_at_the_tolerance_false_alarms_stay_within_the_budget() -> None:
    """A mean of exactly the tolerance is the worst that is still allowed; gate and baseline are live."""
    budget, steps, runs = 50.0, 200, 50
    rng = np.random.default_rng(7)
    alarmed = 0
    for _ in range(runs):
        detector = BettingEDetector(budget)
        for t in range(1, steps + 5):
            asked = detector.update(t, [])  # shows the tolerance of the next value and changes nothing
            y = rng.binomial(16, asked.drivers[0].tolerance) / 16 if t > 4 else 0.0
            held = detector.update(t, [Observation("polluted", y, 16)])
            if held.log_e >= held.log_bound:
                alarmed += 1
                break
    assert 0 < alarmed / (runs * steps) * 10_000 <= budget


def test_healthy_runs_raise_no_alarm_in_five_thousand_steps() -> None:
    alarms = [a for seed in range(5) for a in rows(spiking(seed, steps=1000, onset=10_000)) if a[1] == "alarm"]
    assert alarms == []


def test_a_hazard_that_is_near_zero_on_most_steps_and_not_on_some_is_normal() -> None:
    """Its mean is ten times its usual level; what is asked is whether the mean stays within tolerance."""
    alarms = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        detector = BettingEDetector(50.0)
        for t in range(1, 301):
            y = 0.0003 if rng.random() < 0.6 else rng.exponential(0.04)
            held = detector.update(t, [Observation("hazard:<tool_call>", y, 8)])
            if held.log_e >= held.log_bound:
                alarms += 1
                break
    assert alarms <= 1


@pytest.mark.parametrize(("seed", "step"), [(0, 179), (1, 183), (2, 180), (3, 175)])
def test_a_spike_from_step_150_is_found_at_a_pinned_step(seed: int, step: int) -> None:
    detection = Detection()
    alarms = [a for r in spiking(seed, steps=185) for a in detection.update(r)[0] if a.tier is Tier.ALARM]
    assert [a.step for a in alarms] == [step]
    assert alarms[0].kind == "control_token_spike"
    assert abs(alarms[0].onset_step - 150) <= 20
    assert detection.first_mover() in {"hazard", "hazard:<tool_call>", "hazard:<tool_call>@text", "polluted"}


def test_missing_streams_keep_their_evidence_and_new_ones_join() -> None:
    detector = BettingEDetector()
    for t in range(1, 12):
        both = detector.update(t, [Observation("polluted", 0.05 if t > 6 else 0.0, 16)])
    for t in range(12, 20):
        alone = detector.update(t, [Observation("hazard", 0.0, 16)])
    kept = {d.stream: d for d in alone.drivers}
    assert kept["polluted"].level == 0.05
    # Its weight fell from 1 to 0.3 of 0.5 when `hazard` joined: the evidence followed, and nothing else did.
    wealth = math.exp(both.log_e)
    assert kept["polluted"].share * math.exp(alone.log_e) == pytest.approx(wealth * 0.3 / 0.5)


def test_values_that_are_no_rates_are_counted_and_poison_nothing() -> None:
    clean, dirty = BettingEDetector(), BettingEDetector()
    for t in range(1, 30):
        good = Observation("polluted", 0.01 * (t % 3), 8)
        expected = clean.update(t, [good])
        bad = [
            Observation("empty", math.nan, 8),
            Observation("truncated", 1.5, 8),
            Observation("hazard", -1.0, 8),
        ]
        assert dirty.update(t, [good, *bad[:1], Observation("polluted", 0.9, 8)]) == expected
    assert dirty.bets.table.ignored == 2 * 29  # NaN, and a stream named twice in one step
    held = dirty.update(30, bad)
    assert math.isfinite(held.log_e) and all(math.isfinite(d.level) for d in held.drivers)


def test_an_infinite_hazard_is_a_certain_failure() -> None:
    read = StreamTable().read([Observation("hazard", math.inf, 4)])
    assert (read.at, read.y.tolist()) == (slice(None), [1.0])


def test_the_order_of_observations_means_nothing() -> None:
    a, b = BettingEDetector(), BettingEDetector()
    for r in spiking(5, steps=60, onset=30, rate=0.3):
        assert a.update(r.step, r.observations) == b.update(r.step, r.observations[::-1])


@pytest.mark.parametrize("budget", [0, -1, 20_000])
def test_a_budget_that_makes_no_sense_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="fa_per_10k: got"):
        BettingEDetector(budget)


# baseline


def test_a_slow_drift_cannot_drag_the_baseline_along() -> None:
    baseline = SelfStartingBaseline()
    baseline.grow([0.01])
    at, calm = np.array([0]), np.array([[False]])
    for _ in range(30):
        baseline.update(at, np.array([0.02]), calm)
    start = math.log(baseline.values()[0, 0] + 0.01)
    for t in range(100):
        baseline.update(at, np.array([0.02 * math.exp(0.05 * t)]).clip(0, 1), calm)
    assert math.log(baseline.values()[0, 0] + 0.01) - start <= 100 * CREEP + 0.5 + 1e-9


def test_an_event_lets_the_baseline_jump_by_a_nat_at_most() -> None:
    detector = BettingEDetector()
    for t in range(1, 40):
        detector.update(t, [Observation("polluted", 0.02, 16)])
    detector.mark_event(39, "curriculum")
    for t in range(40, 60):
        held = detector.update(t, [Observation("polluted", 0.9, 16)])
    assert held.drivers[0].baseline + 0.01 <= 0.03 * math.e * 1.6
    assert held.log_e > held.log_bound  # a collapse stays one, whatever was announced


# contract of the family


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_prefix_invariant_and_continues_from_its_state_bit_for_bit(name: str) -> None:
    run = spiking(11, steps=190, onset=100, rate=0.2)
    (whole,) = build([name])
    expected = [whole.update(r.step, r.observations) for r in run]
    for cut in (0, 3, 60, 115):
        (head,) = build([name])
        assert [head.update(r.step, r.observations) for r in run[:cut]] == expected[:cut]
        (tail,) = build([name])
        tail.load_state_dict(json.loads(json.dumps(head.state_dict(), allow_nan=False)))
        assert [tail.update(r.step, r.observations) for r in run[cut:]] == expected[cut:]
        assert tail.onset() == whole.onset() and tail.first_mover() == whole.first_mover()


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_takes_an_empty_step_and_resets(name: str) -> None:
    (detector,) = build([name])
    (fresh,) = build([name])
    empty = detector.update(1, [])
    assert empty.log_e < empty.log_bound and empty.drivers == ()
    for r in spiking(2, steps=40, onset=5, rate=1.0):
        detector.update(r.step, r.observations)
    detector.mark_event(40, "x")
    detector.reset()
    assert detector.state_dict() == fresh.state_dict()
    assert isinstance(detector, Detector)


def test_detectors_that_bet_together_hold_what_each_holds_alone() -> None:
    """One pass for all, through an alarm, an event, one of them forgetting and a state taken over."""
    run, names = spiking(8, steps=240, onset=150), ("e_detector", "hard_limit", "watch")
    together, alone = Detection(build(names)), [build([name])[0] for name in names]
    for r in run:
        if r.step == 60:
            for d in (*together.detectors, *alone):
                d.mark_event(59, "curriculum")
        if r.step == 120:
            state = json.loads(json.dumps(together.state_dict()))
            together = Detection(build(names))
            together.load_state_dict(state)
        if r.step == 200:
            for d in (alone[2], together.detectors[2]):
                d.forget()
        seen = Observed.of(r.observations)
        for one, other in zip(together.detectors, alone, strict=True):
            assert one.update(r.step, seen) == other.update(r.step, r.observations)
            assert (one.onset(), one.first_mover()) == (other.onset(), other.first_mover())
    assert together.detectors[1].bets.table is together.detectors[0].bets.table
    watch = together.detectors[2]
    watch.reset()
    assert watch.update(241, run[-1].observations).log_e < 0
    assert together.detectors[0].update(241, run[-1].observations).log_e > 0


def test_an_unknown_detector_is_an_error_that_lists_the_choices() -> None:
    with pytest.raises(UnknownPlugin, match="expected one of e_detector, hard_limit, health, watch"):
        build(["cusum"])


# hard limit, health


def over(path: list[float], stream: str = "truncated", groups: int = 8) -> tuple[HardLimit, list[int]]:
    """The steps on which a hard limit speaks of a stream that lay at 0.05 for 20 steps, then took this path."""
    detector, spoke = HardLimit(), []
    for t, level in enumerate([0.05] * 20 + path, 1):
        held = detector.update(t, [Observation(stream, level, groups)])
        spoke += [t] if held.log_e >= held.log_bound else []
    return detector, spoke


@pytest.mark.parametrize(
    ("path", "groups", "first"),
    [
        ([0.92, 0.05], 8, 21),  # certain on one step
        ([0.8, 0.05], 8, 0),  # a freak batch
        ([0.4, 0.4], 8, 22),  # far, twice
        ([0.3, 0.3], 8, 0),  # tolerated are 0.15, and 0.35 would be far
        ([0.25, 0.7], 8, 22),  # rising
        ([0.7, 0.25], 8, 0),  # falling
        ([0.4, 0.4], 5, 0),
        ([0.4, 0.4, 0.5], 5, 23),  # of few prompts three steps are asked for,
        ([0.6, 0.6], 5, 22),  # but not where half of the outcomes are bad
        ([0.92, 0.05], 5, 0),
    ],
)
def test_the_hard_limit_speaks_where_no_single_batch_leads(path: list[float], groups: int, first: int) -> None:
    detector, spoke = over(path, groups=groups)
    assert next(iter(spoke), 0) == first
    if first:
        assert detector.onset() == 21


def test_the_hard_limit_names_who_moved_first() -> None:
    detector, _ = over([0.4, 0.4])
    assert detector.first_mover() == "truncated"


def test_an_alarm_of_the_hard_limit_alone_holds_with_its_drivers_and_clears() -> None:
    detection, path = Detection(build(["hard_limit"])), [0.05] * 20 + [0.9, 0.95] + [0.6] * 20 + [0.01] * 20
    found = [a for t, y in enumerate(path, 1) for a in detection.update(record(t, 8, truncated=y))[0]]
    assert [(a.step, str(a.tier)) for a in found][:3] == [(21, "alarm"), (31, "hold"), (41, "hold")]
    assert str(found[-1].tier) == "cleared" and 50 <= found[-1].step <= 62
    assert {a.kind for a in found} == {"length_runaway"}


@pytest.mark.parametrize(("stream", "speaks"), [("hazard", True), ("hazard:<a>", False), ("hazard@text", False)])
def test_the_hard_limit_watches_sums_and_outcomes_but_no_single_token(stream: str, speaks: bool) -> None:
    assert bool(over([0.6, 0.6], stream)[1]) is speaks


@pytest.mark.parametrize(("level", "speaks"), [(0.049, False), (0.06, True)])
def test_less_than_a_twentieth_is_no_jump(level: float, speaks: bool) -> None:
    detector = HardLimit()
    held = [detector.update(t, [Observation("hazard", level if t > 20 else 1e-4, 8)]).log_e for t in range(1, 24)]
    assert (max(held) >= 0) is speaks


def test_the_hard_limit_lets_a_high_normal_be() -> None:
    detector = HardLimit()
    levels = [detector.update(t, [Observation("truncated", 0.6, 16)]).log_e for t in range(1, 40)]
    assert max(levels) < 0


def test_health_speaks_of_a_broken_start_once() -> None:
    broken = [record(t, 4, truncated=0.4 + 0.01 * t) for t in range(1, 40)]
    assert rows(broken) == [(5, "watch", "health")]
    healthy = HealthCheck()
    held = [healthy.update(t, [Observation("truncated", 0.2, 4)]) for t in range(1, 20)]
    assert all(e.log_e < e.log_bound for e in held)
    assert held[6].log_e == pytest.approx(math.log(0.2 / 0.3))


# policy


class Siren(Detector):
    """Speaks when told to; its one stream has baseline 0.01 and tolerance 0.1."""

    name = "siren"

    def __init__(self) -> None:
        self.forgot: list[str] = []

    def update(self, step, observations):
        level = observations[0].value if observations else 0.0
        return Evidence(step, "siren", 10 * level - 1, 0.0, (Driver("polluted", 1.0, level, 0.01, 0.1),))

    def onset(self) -> int:
        return 3

    def forget(self) -> None:
        self.forgot.append("evidence")

    def reset(self) -> None:
        self.forgot.append("baseline")

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


def test_an_alarm_holds_clears_after_eight_good_steps_and_waits_before_the_next() -> None:
    siren = Siren()
    detection = Detection([siren])
    levels = [0.0] * 4 + [0.5] * 12 + [0.04] * 7 + [0.11] + [0.04] * 8 + [0.5] * 12
    states, seen = [], []
    for t, y in enumerate(levels, 1):
        alarms, _ = detection.update(record(t, polluted=y))
        seen += [(a.step, str(a.tier), a.onset_step) for a in alarms]
        states.append(detection.state)
    # 7 good steps and one beyond the tolerance of 0.1 do not clear it; 8 in a row do; then 10 steps of rest.
    assert seen == [(5, "alarm", 3), (15, "hold", 3), (25, "hold", 3), (32, "cleared", 3), (43, "alarm", 3)]
    assert siren.forgot == ["evidence"]
    assert (states[3], states[4], states[5], states[31], states[42]) == ("ok", "alarm", "hold", "ok", "alarm")


@pytest.mark.parametrize(("high", "cleared"), [(0.07, [12]), (0.09, [])])
def test_an_alarm_clears_by_the_mean_of_good_steps_however_noisy_each_is(high: float, cleared: list[int]) -> None:
    noisy = [0.5] * 4 + [0.02, high] * 10  # tolerated is 0.1, calm below 0.05
    seen = rows([record(t, polluted=y) for t, y in enumerate(noisy, 1)], Detection([Siren()]))
    assert [step for step, tier, _ in seen if tier == "cleared"] == cleared


def test_an_alarm_that_never_clears_becomes_the_new_normal_and_says_so() -> None:
    siren = Siren()
    seen = rows([record(t, polluted=0.4) for t in range(1, 70)], Detection([siren]))
    holds = [(s, "hold", "siren") for s in (11, 21, 31, 41)]
    assert seen == [(1, "alarm", "siren"), *holds, (61, "rebaselined", "siren")]
    assert siren.forgot == ["baseline"]


def test_what_is_done_about_an_alarm_puts_off_the_new_normal() -> None:
    siren, found = Siren(), []
    detection = Detection([siren])
    for t in range(1, 121):
        found += [(a.step, str(a.tier)) for a in detection.update(record(t, polluted=0.4))[0]]
        if t in (20, 50):
            detection.mark_event(t, "intervention expert")
    assert [row for row in found if row[1] != "hold"] == [(1, "alarm"), (110, "rebaselined")]
    assert siren.forgot == ["baseline"]


def test_a_broken_run_never_becomes_the_new_normal() -> None:
    detection = Detection([Siren()])
    run = [record(t, polluted=0.5) for t in range(1, 70)]
    assert "rebaselined" not in [tier for _, tier, _ in rows(run, detection)]
    assert detection.state == "hold"
    assert rows([record(70, polluted=0.4)], detection) == [(70, "rebaselined", "siren")]


def test_a_step_that_shows_no_culprit_is_neither_good_nor_bad() -> None:
    detection = Detection([Siren()])
    run = [record(1, polluted=0.5), *(record(t, polluted=0.0) for t in range(2, 9))]
    run += [record(t, truncated=0.0) for t in range(9, 20)]
    assert rows(run, detection) == [(1, "alarm", "siren"), (11, "hold", "siren")]
    assert rows([record(20, polluted=0.0)], detection) == [(20, "cleared", "siren")]


def test_detection_continues_from_its_state_in_the_middle_of_an_alarm() -> None:
    run = spiking(3, steps=240)
    whole = Detection()
    expected = [whole.update(r) for r in run]
    for cut in (100, 171, 178, 200):
        head, tail = Detection(), Detection()
        for r in run[:cut]:
            head.update(r)
        tail.load_state_dict(json.loads(json.dumps(head.state_dict(), allow_nan=False)))
        assert [tail.update(r) for r in run[cut:]] == expected[cut:]
    with pytest.raises(ValueError, match=r"got detectors e_detector, .* expected hard_limit"):
        Detection(build(["hard_limit"])).load_state_dict(whole.state_dict())


def test_a_collapse_and_its_repair_are_one_alarm_that_clears() -> None:
    broken = spiking(4, steps=175, rate=0.4)
    healed = [StepRecord(176 + i, 0.0, {}, r.observations) for i, r in enumerate(spiking(9, steps=60, onset=999))]
    tiers = [tier for _, tier, _ in rows(broken + healed) if tier not in ("hold", "watch")]
    assert tiers == ["alarm", "cleared"]


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({"truncated": 0.3, "no_end": 0.3, "hazard": 0.15, "hazard:a": 0.25}, "control_token_spike"),
        ({"polluted": 0.8, "no_end": 0.15, "hazard": 0.05}, "eos_loss"),  # a cause goes before what it causes
        ({"polluted": 0.5, "truncated": 0.4, "hazard": 0.1}, "format_breakage"),
        ({"empty": 0.6, "repeated": 0.4}, "early_stop"),
        ({}, ""),
    ],
)
def test_the_evidence_names_the_failure(parts: dict[str, float], kind: str) -> None:
    assert failure([Driver(s, share, 0.5, 0.0, 0.1) for s, share in parts.items()]) == kind


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="alarm policy: got clear_run=0"):
        AlarmPolicy(clear_run=0)


def test_the_health_check_of_a_long_run_keeps_no_more_than_it_needs() -> None:
    check = HealthCheck()
    check.update(1, [Observation("parse_failure", 0.0, 8)])  # and never a call again
    for step in range(2, 200):
        held = check.update(step, [Observation("empty", 0.9, 8)])
        assert (held.log_e >= held.log_bound) == (6 <= step <= 11)
    assert sum(map(len, check.values.values())) <= 12


# prefix invariance of the whole

SOME = st.dictionaries(st.sampled_from([*NAMES, "parse_failure", "truncated"]), st.floats(0, 1), max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.lists(SOME, max_size=60), st.sets(st.integers(1, 60), max_size=4), st.integers(0, 60), st.integers(1, 20))
def test_what_comes_later_changes_nothing_and_a_state_may_be_taken_over_anywhere(
    levels: list[dict[str, float]], marks: set[int], cut: int, groups: int
) -> None:
    records = [record(t, groups, **rates) for t, rates in enumerate(levels, 1)]

    def judge(detection: Detection, part: list[StepRecord]) -> list[object]:
        found: list[object] = []
        for r in part:
            found.append(detection.update(r))
            if r.step in marks:
                detection.mark_event(r.step, "curriculum")
        return found

    whole = judge(Detection(), records)
    head, tail = Detection(), Detection()
    assert judge(head, records[:cut]) == whole[:cut]
    tail.load_state_dict(json.loads(json.dumps(head.state_dict(), allow_nan=False)))
    assert judge(tail, records[cut:]) == whole[cut:]
