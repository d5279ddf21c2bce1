"""One step's measure against a second, slow computation, position by position, and across ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.cells import _quantiles
from collapsewatch.combine import combine
from collapsewatch.formats import format_named
from collapsewatch.formats.base import BoundFormat
from collapsewatch.measure import measure_rank
from collapsewatch.records import SLOTS, Slot, Structure
from collapsewatch.rollouts import Rollouts
from collapsewatch.selftest import CALIBRATION, deviations
from tests.renderers import byte_tokenizer

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
Pairs = dict[str, dict[int, list[float]]]


@pytest.fixture(scope="module")
def bound(tokenizer: Any) -> BoundFormat:
    return format_named("hermes").bind(tokenizer)


def rollouts(bound: BoundFormat, tokenizer: Any, seed: int, n: int, t: int) -> Rollouts:
    """Random rollouts, rich in control tokens, gaps in the mask, unknown log-probs and NaN rewards."""
    draw = np.random.default_rng(seed)
    words = np.array(tokenizer.encode('ab"{}\n ', add_special_tokens=False))
    ids = np.where(draw.random((n, t)) < 0.5, draw.choice(bound.ids, (n, t)), draw.choice(words, (n, t)))
    call = tokenizer.encode(CALL, add_special_tokens=False)
    for row in ids[draw.random(n) < 0.4]:
        row[: len(call)] = call[:t]
    mask = draw.random((n, t)) < draw.choice([0.5, 0.9, 1.0], (n, 1))
    mask[draw.random(n) < 0.1] = False
    p = draw.dirichlet(np.full(len(bound.ids) + 1, 0.3), (n, t))[..., 1:]
    with np.errstate(divide="ignore"):
        logp = np.log(p).astype(np.float32)
    logp[draw.random((n, t)) < 0.1] = np.nan
    reward = draw.choice([0.0, 0.25, 1.0, 1000.1, np.nan], n)
    return Rollouts(
        ids=ids,
        mask=mask,
        logp=logp,
        entropy=None if draw.random() < 0.2 else np.where(draw.random((n, t)) < 0.2, np.nan, draw.random((n, t))),
        group=draw.integers(0, 3, n),
        reward=reward,
        advantage=draw.normal(size=n),
        env_errors=draw.integers(0, 2, n),
        row=np.arange(n) + 100,
        length=np.full(n, t),
        label_logp=None if draw.random() < 0.2 else holes(draw, -draw.exponential(size=(n, t))),
        sampler_logp=None if draw.random() < 0.2 else holes(draw, -draw.exponential(size=(n, t))),
        altered=None if draw.random() < 0.2 else draw.choice([0.0, 1.0, np.nan], n),
        guided=None if draw.random() < 0.2 else draw.random(n) < 0.3,
    )


def holes(draw: np.random.Generator, values: Any) -> Any:
    values[draw.random(values.shape) < 0.2] = np.nan
    return values


class Slow:
    """Numerators and denominators by stream and group, hazards by position, in plain Python."""

    def __init__(self, r: Rollouts, bound: BoundFormat) -> None:
        self.r, self.bound, self.role = r, bound, bound.format.role
        arrays = bound.slots(r.ids, r.mask)
        self.slot = [[SLOTS[code] if code >= 0 else None for code in row] for row in arrays.slot.tolist()]
        self.turn, self.alive, self.may = arrays.turn.tolist(), arrays.alive.tolist(), arrays.legal.tolist()
        self.pairs: Pairs = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
        self.hazard: dict[tuple[int, int], float] = defaultdict(float)  # illegal emissions by (rollout, turn)
        # (p, drawn, advantage, scored, turn) by (token, slot, legal)
        self.cells: dict[tuple[str, str, bool], list[tuple[float, bool, float, bool, int]]] = defaultdict(list)
        self.turns = [
            [[t for t, at in enumerate(row) if at == j] for j in range(max(row, default=-1) + 1)] for row in self.turn
        ]
        places = [(i, t) for i in range(len(r.ids)) for t in range(r.ids.shape[1]) if self.scored(i, t)]
        streams = ["hazard", *(f"hazard:{token}" for token in bound.tokens)]
        for i, t in places:
            forbidden = [token for token, may in zip(bound.tokens, self.may[i][t], strict=True) if not may]
            streams += [f"hazard:{token}@{self.slot[i][t]}" for token in forbidden]
            streams += [f"hazard@{self.slot[i][t]}"] if forbidden else []
        for i in range(len(r.ids)):
            self.hazards(i, sorted(set(streams)))
            self.tokens(i)
            self.legal(i)
            self.outcomes(i)

    def known(self, i: int, t: int) -> bool:
        return t >= 0 and bool(self.r.mask[i, t]) and all(math.isfinite(x) for x in self.r.logp[i, t].tolist())

    def scored(self, i: int, t: int) -> bool:
        return self.known(i, t) and self.alive[i][t]

    def p(self, i: int, t: int) -> dict[str, float]:
        return dict(zip(self.bound.tokens, [math.exp(min(x, 0.0)) for x in self.r.logp[i, t].tolist()], strict=True))

    def add(self, stream: str, i: int, numerator: float, denominator: float) -> None:
        if denominator:
            pair = self.pairs[stream][int(self.r.group[i])]
            pair[0], pair[1] = pair[0] + numerator, pair[1] + denominator

    def hazards(self, i: int, streams: list[str]) -> None:
        whole: dict[tuple[str, int], float] = defaultdict(lambda: 1.0)  # probability that a turn stays whole
        seen = set()
        for t in range(self.r.ids.shape[1]):
            if not self.scored(i, t):
                continue
            seen.add(self.turn[i][t])
            slot = self.slot[i][t]
            assert slot is not None
            for k, (token, p) in enumerate(self.p(i, t).items()):
                if self.may[i][t][k]:
                    continue
                h = -math.log(1 - min(p, 1 - 1e-12))
                self.hazard[i, self.turn[i][t]] += h
                for stream in ("hazard", f"hazard:{token}", f"hazard@{slot}", f"hazard:{token}@{slot}"):
                    whole[stream, self.turn[i][t]] *= 1 - min(p, 1 - 1e-12)
        for stream in streams:
            self.add(stream, i, sum(1 - whole[stream, j] for j in seen), len(seen))

    def tokens(self, i: int) -> None:
        """Cells, logit pressure, calibration, and the means over tokens."""
        advantage, r = float(self.r.advantage[i]), self.r
        for t in range(r.ids.shape[1]):
            drawn = [bool(r.ids[i, t] == k) for k in self.bound.ids]
            if self.known(i, t):
                for k, (token, p) in enumerate(self.p(i, t).items()):
                    cell = (token, str(self.slot[i][t]), self.may[i][t][k])
                    self.cells[cell].append((p, drawn[k], advantage, self.scored(i, t), self.turn[i][t]))
                    self.add(f"logit_pressure/self/{token}", i, advantage * (1 - p) if drawn[k] else 0.0, 1)
                    self.add(f"logit_pressure/other/{token}", i, 0.0 if drawn[k] else -advantage * p, 1)
            if self.scored(i, t) and (r.guided is None or not r.guided[i]):
                mass = min(sum(self.p(i, t).values()), 1.0)
                self.add("probe/calibration", i, any(drawn) - mass, max(mass * (1 - mass), 1e-6))
            if not r.mask[i, t]:
                continue
            if r.entropy is not None and math.isfinite(r.entropy[i, t]):
                region = {"open": "call", "body": "call", "think": "think"}.get(str(self.slot[i][t]), "text")
                self.add("entropy", i, r.entropy[i, t], 1)
                self.add(f"entropy/{'control' if any(drawn) else region}", i, r.entropy[i, t], 1)
            if r.label_logp is not None and math.isfinite(r.label_logp[i, t]):
                if advantage:
                    self.add(f"logp/{'rewarded' if advantage > 0 else 'punished'}", i, r.label_logp[i, t], 1)
                if r.sampler_logp is not None and math.isfinite(r.sampler_logp[i, t]):
                    gap = abs(r.label_logp[i, t] - r.sampler_logp[i, t])
                    self.add("sampling/logp_gap", i, gap, 1)
                    self.add("sampling/logp_gap_control", i, gap, int(any(drawn)))
        if r.altered is not None and math.isfinite(r.altered[i]):
            self.add("sampling/altered", i, r.altered[i], 1)

    def legal(self, i: int) -> None:
        opens, any_text = 0.0, False
        for t in range(self.r.ids.shape[1]):
            if not self.scored(i, t):
                continue
            by_role: dict[str, float] = defaultdict(float)
            for token, p in self.p(i, t).items():
                by_role[self.role[token]] += p
            slot = self.slot[i][t]
            if slot is Slot.TEXT:
                any_text = True
                opens += sum(
                    -math.log(1 - min(p, 1 - 1e-12)) for k, p in self.p(i, t).items() if self.role[k] == "open"
                )
            again = self.scored(i, t - 1) and self.slot[i][t - 1] is slot and self.turn[i][t - 1] == self.turn[i][t]
            allowed = sum(p for p, may in zip(self.p(i, t).values(), self.may[i][t], strict=True) if may)
            if slot is Slot.START and not again:
                self.add("no_call_start", i, max(0.0, 1 - allowed), 1)
            if slot is Slot.CLOSE and not again:
                self.add("no_end", i, max(1 - allowed, 0.0), 1)
                self.add("reopen", i, by_role["open"], 1)
        self.add("call_in_text", i, 1 - math.exp(-opens), any_text)

    def outcomes(self, i: int) -> None:
        found = [self.bound.classify_ids(self.r.ids[i, turn]) for turn in self.turns[i]]
        for turn in found:
            for structure in Structure:
                self.add(f"structure/{structure}", i, turn.structure is structure, 1)
            for stream in ("polluted", "collapsed"):
                self.add(stream, i, turn.structure == stream, 1)
            for stream, reason in (("empty", "empty"), ("truncated", "truncated"), ("repeated", "repetition")):
                self.add(stream, i, turn.reason == reason, 1)
            self.add("parse_failure", i, turn.attempted - len(turn.calls), turn.attempted)
        self.add("no_call", i, sum(turn.attempted for turn in found) == 0, 1)
        self.add("tools/call_frequency", i, sum(len(turn.calls) for turn in found), 1)
        self.add("env_errors", i, int(self.r.env_errors[i]), 1)
        self.add("turns", i, len(found), 1)
        self.add("completions/mean_length", i, int(self.r.mask[i].sum()), 1)
        self.add("completions/clipped_ratio", i, bool(found) and self.stop(i, len(found) - 1) == "length", 1)
        healthy = (Structure.TOOL_CALL, Structure.RESPONSE)
        self.add("turns/void", i, sum(not (turn.calls or turn.structure in healthy) for turn in found), len(found))
        saved = [max(turn.attempted, len(turn.calls) + turn.recovered) for turn in found]
        self.add("lenient_parse_rate", i, sum(len(turn.calls) + turn.recovered for turn in found), sum(saved))
        if math.isfinite(self.r.reward[i]):
            self.add("reward", i, float(self.r.reward[i]), 1)

    def stop(self, i: int, j: int) -> str:
        last = int(self.r.ids[i, self.turns[i][j][-1]])
        ends = [
            k for k, token in zip(self.bound.ids.tolist(), self.bound.tokens, strict=True) if self.role[token] == "end"
        ]
        return "eos" if last in ends else "length"


def is_metric(name: str) -> bool:
    single = name in ("reward", "env_errors", "turns", "entropy", "lenient_parse_rate")
    return single or (name.split("/")[0] in GROUPS and not name.startswith("hazard"))


GROUPS = ["completions", "entropy", "logit_pressure", "logp", "probe", "sampling", "structure", "tools", "turns"]
DERIVED = {"reward_std", "frac_reward_zero_std", "parse_rate", "hazard", "probe/max_error"}


def ratio(groups: dict[int, list[float]]) -> tuple[float, int, float]:
    """A ratio of cluster totals and its standard error by the delta method, from (co)variances of the totals."""
    y, x = np.array(list(groups.values())).T
    value, n = y.sum() / x.sum(), len(y)
    if n < 2:
        return value, n, 0.0
    (yy, xy), (_, xx) = np.cov(y, x, ddof=1)
    return value, n, math.sqrt(max(n * (yy - 2 * value * xy + value**2 * xx), 0.0)) / x.sum()


def test_one_turn_that_is_sure_to_break_is_one_turn(bound: BoundFormat, tokenizer: Any) -> None:
    """Its hazard has no bound, and must not weigh more than its share of the turns."""
    ids = np.array([tokenizer.encode("ab<|im_end|>", add_special_tokens=False)] * 62)
    logp = np.full((*ids.shape, len(bound.ids)), -50.0)
    logp[0, 1, bound.tokens.index("<tool_response>")] = math.log(0.998)
    ones, zeros = np.ones(62), np.zeros(62, int)
    r = Rollouts(ids, np.ones_like(ids, bool), logp, None, np.arange(62) // 8, ones, ones, zeros, zeros, zeros + 3)
    measured = measure_rank(r, bound)
    streams = {o.stream: o.value for o in combine([measured.sums], measured, 1, 2.0).observations}
    for stream in ("hazard", "hazard:<tool_response>", "hazard@text", "hazard:<tool_response>@text"):
        assert 1 - math.exp(-streams[stream]) == pytest.approx(0.998 / 62, rel=1e-6)
    assert streams["hazard:<tool_call>"] == pytest.approx(0.0, abs=1e-12)
    assert measured.rollouts[0].hazard == pytest.approx(-math.log(0.002))


CASES = {"seed": st.integers(0, 10**6), "n": st.integers(1, 7), "t": st.integers(1, 40)}


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_measure_agrees_with_a_slow_one(bound: BoundFormat, tokenizer: Any, seed: int, n: int, t: int) -> None:
    r = rollouts(bound, tokenizer, seed, n, t)
    slow = Slow(r, bound)
    measured = measure_rank(r, bound)
    record = combine([measured.sums], measured, step=4, time=5.0, metrics={"probe/max_error": 0.5})
    assert (record.step, record.time, record.metrics["probe/max_error"]) == (4, 5.0, 0.5)
    assert {o.stream for o in record.observations} == {name for name in slow.pairs if not is_metric(name)}
    assert len(record.observations) == len({o.stream for o in record.observations})
    for o in record.observations:
        value, size, stderr = ratio(slow.pairs[o.stream])
        if o.stream.startswith("hazard"):  # the rate of a Poisson process that breaks as many turns
            value, stderr = -math.log(max(1 - value, 1e-12)), stderr / max(1 - value, 1e-12)
        assert o.n == size and o.value == pytest.approx(value, rel=1e-6, abs=1e-9), o.stream
        assert o.stderr == pytest.approx(stderr, rel=1e-4, abs=1e-6 * max(1.0, value)), o.stream
    metrics = {name: ratio(pairs)[0] for name, pairs in slow.pairs.items() if is_metric(name)}
    if "probe/calibration" in metrics:
        drawn, variance = np.sum([*slow.pairs["probe/calibration"].values()], axis=0)
        metrics["probe/calibration"] = drawn / math.sqrt(variance + abs(drawn) / 3)
    found = {name: value for name, value in record.metrics.items() if name not in DERIVED}
    assert found == pytest.approx(metrics, rel=1e-6, abs=1e-9)
    check_rewards(r, record.metrics)
    check_details(r, slow, measured)


def check_rewards(r: Rollouts, metrics: Any) -> None:
    reward = r.reward[np.isfinite(r.reward)]
    assert ("reward_std" in metrics) == bool(len(reward))
    if not len(reward):
        return
    std = reward.std(ddof=1) if len(reward) > 1 else 0.0
    assert metrics["reward_std"] == pytest.approx(std, rel=1e-6, abs=1e-4)
    known = [r.reward[(r.group == g) & np.isfinite(r.reward)] for g in np.unique(r.group)]
    alike = [len(set(rewards.tolist())) == 1 for rewards in known if len(rewards)]
    assert metrics["frac_reward_zero_std"] == pytest.approx(np.mean(alike))


def check_details(r: Rollouts, slow: Slow, measured: Any) -> None:
    turns = sum(pair[1] for pair in slow.pairs.get("hazard", {}).values())
    assert [(row.token, row.slot, row.legal) for row in measured.control] == sorted(
        slow.cells, key=lambda cell: (SLOTS.index(Slot(cell[1])), slow.bound.tokens.index(cell[0]), cell[2])
    )
    for row in measured.control:
        cell = slow.cells[row.token, row.slot, row.legal]
        trained = sum(pair[1] for pair in slow.pairs[f"logit_pressure/self/{row.token}"].values())
        push = sum(a * (1 - p) for p, drawn, a, _, _ in cell if drawn) / trained
        assert row.pressure_self == pytest.approx(push, abs=1e-9)
        push = sum(-a * p for p, drawn, a, _, _ in cell if not drawn) / trained
        assert row.pressure_other == pytest.approx(push, abs=1e-9)
        scored = [(p, drawn, turn) for p, drawn, _, alive, turn in cell if alive]
        assert (row.n, row.sampled) == (len(scored), sum(drawn for _, drawn, _ in scored))
        by_turn = [[p for p, _, turn in scored if min(turn, 7) == j] for j in range(len(row.turn_n))]
        assert row.turn_n == tuple(map(len, by_turn)) and sum(row.turn_n) == row.n
        means = [sum(p) / len(p) if p else math.nan for p in by_turn]
        assert row.turn_mean == pytest.approx(means, rel=1e-6, abs=1e-9, nan_ok=True)
        where_drawn = [p for p, drawn, _ in scored if drawn]
        forced = sum(where_drawn) / len(where_drawn) if where_drawn else math.nan
        assert row.forced == pytest.approx(forced, rel=1e-6, abs=1e-9, nan_ok=True)
        p = sorted(p for p, _, _ in scored)
        if not p:
            assert math.isnan(row.mean) and math.isnan(row.max) and row.hazard == row.expected == 0.0
            continue
        at = [(len(p) - 1) * q for q in (0.5, 0.99)]
        p50, p99 = (p[int(x)] + (x - int(x)) * (p[min(int(x) + 1, len(p) - 1)] - p[int(x)]) for x in at)
        expected = {"mean": sum(p) / len(p), "p50": p50, "p99": p99, "max": p[-1], "expected": sum(p)}
        expected["hazard"] = sum(-math.log(1 - min(x, 1 - 1e-12)) for x in p) / turns
        assert {name: getattr(row, name) for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
    rows = iter(measured.turns)
    for i, spans in enumerate(slow.turns):
        found = [slow.bound.classify_ids(r.ids[i, turn]) for turn in spans]
        for j, turn in enumerate(found):
            row = next(rows)
            assert (row.rollout, row.turn, row.structure, row.reason) == (100 + i, j, turn.structure, turn.reason)
            assert (row.tokens, row.calls, row.stop) == (len(spans[j]), len(turn.calls), slow.stop(i, j))
            assert row.hazard == pytest.approx(slow.hazard[i, j], rel=1e-6, abs=1e-9)
        whole = measured.rollouts[i]
        assert (whole.rollout, whole.group, whole.turns) == (100 + i, r.group[i], len(spans))
        assert np.array_equal([whole.reward, whole.advantage], [r.reward[i], r.advantage[i]], equal_nan=True)
        assert (whole.tokens, whole.env_errors) == (r.mask[i].sum(), r.env_errors[i])
        assert whole.calls == sum(len(turn.calls) for turn in found)
        assert whole.hazard == pytest.approx(sum(slow.hazard[i, j] for j in range(len(spans))), rel=1e-6, abs=1e-9)
        states = {turn.structure for turn in found} or {Structure.COLLAPSED}
        order = (Structure.COLLAPSED, Structure.POLLUTED, Structure.RESPONSE, Structure.TOOL_CALL)
        assert whole.structure == next(state for state in order if state in states)
    assert next(rows, None) is None


def part(r: Rollouts, rows: Any) -> Rollouts:
    fields = {name: getattr(r, name) for name in Rollouts.__slots__}
    return Rollouts(**{name: None if value is None else value[rows] for name, value in fields.items()})


@settings(max_examples=60, deadline=None)
@given(**CASES, ranks=st.integers(2, 4))
def test_ranks_together_are_one_rank(bound: BoundFormat, tokenizer: Any, seed: int, n: int, t: int, ranks: int) -> None:
    r = rollouts(bound, tokenizer, seed, n + ranks, t)
    of = np.arange(n + ranks) % ranks
    parts = [measure_rank(part(r, of == rank), bound) for rank in range(ranks)]
    whole = measure_rank(r, bound)
    one = combine([whole.sums], whole, 1, 2.0)
    for detail in parts:
        many = combine([each.sums for each in parts], detail, 1, 2.0)
        assert [(o.stream, o.n) for o in many.observations] == [(o.stream, o.n) for o in one.observations]
        for a, b in zip(many.observations, one.observations, strict=True):
            # The same sums, added in another order; a residual of zero may keep their rounding.
            assert (a.value, a.stderr) == pytest.approx((b.value, b.stderr), rel=1e-9, abs=1e-9)
        assert many.metrics == pytest.approx(one.metrics, rel=1e-9, abs=1e-4)
        assert (many.control, many.turns, many.rollouts) == (detail.control, detail.turns, detail.rollouts)


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_structures_share_the_turns(bound: BoundFormat, tokenizer: Any, seed: int, n: int, t: int) -> None:
    r = rollouts(bound, tokenizer, seed, n, t)
    measured = measure_rank(r, bound)
    metrics = combine([measured.sums], measured, 1, 2.0).metrics
    shares = [metrics[f"structure/{s}"] for s in Structure if f"structure/{s}" in metrics]
    assert sum(shares) == pytest.approx(1.0) if r.mask.any() else not shares
    assert len(measured.turns) == pytest.approx(metrics["turns"] * n)


def test_a_rank_without_turns_or_known_probabilities(bound: BoundFormat, tokenizer: Any) -> None:
    r = rollouts(bound, tokenizer, 3, 4, 20)
    r.mask[:] = False
    r.reward[:] = np.nan
    measured = measure_rank(r, bound)
    record = combine([measured.sums], measured, 1, 2.0)
    assert [(o.stream, o.value) for o in record.observations] == [("no_call", 1.0)]
    assert {row.structure for row in record.rollouts} == {"collapsed"} and not record.turns
    assert "reward" not in record.metrics and record.metrics["turns"] == 0.0
    r = rollouts(bound, tokenizer, 3, 4, 20)
    r.logp[:] = np.nan
    measured = measure_rank(r, bound)
    streams = {o.stream for o in combine([measured.sums], measured, 1, 2.0).observations}
    assert "polluted" in streams and not any(stream.startswith("hazard") for stream in streams)
    assert combine([], measured, 1, 2.0).observations == ()


def test_a_run_on_stops_by_length_whatever_else_is_wrong(bound: BoundFormat, tokenizer: Any) -> None:
    text = "a b " * 200  # a loop: collapsed, and no end token
    ids = np.array([tokenizer.encode(text, add_special_tokens=False)])
    ones = np.ones(1)
    r = Rollouts(
        ids,
        np.ones_like(ids, bool),
        np.full((*ids.shape, len(bound.ids)), -9.0),
        None,
        np.zeros(1, int),
        ones,
        ones,
        np.zeros(1, int),
        np.zeros(1, int),
        np.full(1, ids.shape[1]),
    )
    measured = measure_rank(r, bound)
    assert [(turn.reason, turn.stop) for turn in measured.turns] == [("repetition", "length")]
    assert combine([measured.sums], measured, 1, 2.0).metrics["completions/clipped_ratio"] == 1.0


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_quantiles_are_those_of_numpy_to_the_bit(values: list[float], shares: list[float]) -> None:
    assert _quantiles(np.array(values), *shares) == np.quantile(values, shares).tolist()


def test_a_marker_of_several_tokens_is_read_at_its_first_and_whole_where_it_was_drawn() -> None:
    small = byte_tokenizer(["<|im_end|>"])
    bound = format_named("hermes").bind(small)
    ids = np.array([small.encode(f"{CALL[:-10]}ab<cd{CALL[-10:]}", add_special_tokens=False)])
    draw = np.random.default_rng(0)
    label_logp = -draw.exponential(size=ids.shape)
    logp = np.log(draw.uniform(0.01, 0.2, (*ids.shape, 2)))
    one, zero = np.ones(1), np.zeros(1, int)
    entropy = draw.random(ids.shape)
    length = np.full(1, ids.size)
    r = Rollouts(ids, np.ones_like(ids, bool), logp, entropy, zero, one, one, zero, zero, length, label_logp)
    measured = measure_rank(r, bound)
    text = [small.decode([i]) for i in ids[0]]
    assert bound.probe_tokens == ("<|im_end|>", "<tool_call>")
    rows = {(row.slot, row.legal): row for row in measured.control if row.token == "<tool_call>"}
    # The opener at the start, the closer after the body; the `<` of the prose opens no marker and counts as drawn only.
    opener, closer = len("<tool_call>"), text.index("<", 1)
    assert "".join(text[:opener]) == "<tool_call>" and "".join(text[closer:]).startswith("</tool_call>")
    assert rows["start", True].forced == pytest.approx(math.exp(label_logp[0, :opener].sum()))
    span = slice(closer, closer + len("</tool_call>"))
    assert rows["body", True].forced == pytest.approx(math.exp(label_logp[0, span].sum()))
    assert math.isnan(rows["text", True].forced) and rows["text", True].sampled == 1
    assert sum(row.sampled for row in rows.values()) == text.count("<") == 3
    metrics = combine([measured.sums], measured, 1, 2.0).metrics
    inside = np.zeros(ids.size, bool)
    inside[:opener] = inside[span] = inside[-1] = True
    assert metrics["entropy/control"] == pytest.approx(entropy[0, inside].mean())


def test_a_rare_token_drawn_once_does_not_speak_against_the_sampler() -> None:
    """Freedman's bound holds where the normal one does not: a run of sure positions, and one surprise."""
    rng = np.random.default_rng(0)
    for p in (1e-5, 1e-3, 0.1):
        drawn = rng.binomial(200, p, 20_000) - 200 * p
        z = np.abs([deviations(excess, 200 * p * (1 - p)) for excess in drawn])
        assert z.max() <= CALIBRATION
        for bound in (2, 3, 4):
            assert (z > bound).mean() <= 2 * math.exp(-(bound**2) / 2)
    assert 0.986 / math.sqrt(0.014) > CALIBRATION  # step 57 of a collapsed run, by the normal bound
    assert deviations(90 - 40, 40) > CALIBRATION  # twice as many as expected, and more
