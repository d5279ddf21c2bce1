"""Runs sampled from their hazards, as the `StepRecord`s that measuring a real run would have left.

A turn breaks when its accumulated hazard passes an exponential variable, and positions count up to that break only,
as in `measure.py`. What is observed of a stream is the mean over turns of 1 - exp(-hazard of the turn).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from latent import LOOP, C, batches, sigmoid, smooth, turn_hazard
from plan import CELLS, ENDS, LEGAL, POSITIONS, TOKENS, Plan

from collapsewatch.records import Observation, StepRecord

_EMPTY = np.array([slot == "start" and token in ENDS for token, slot in CELLS])
_IN_CALL = np.array([slot in ("open", "body") for _, slot in CELLS])
_OTHER = ~(_EMPTY | _IN_CALL)
LEARNING_RATE = 1e-6
Streams = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Value, prompt groups and standard error by stream, each (T,)."""


@dataclass(frozen=True)
class Run:
    """One simulated run: per stream `value`, `n` and `stderr` (T,), and the scalars a trainer would log."""

    plan: Plan
    steps: np.ndarray  # (T,) logged steps
    streams: Streams
    metrics: dict[str, np.ndarray]

    def records(self) -> Iterator[StepRecord]:
        """One record per logged step; a stream without a prompt group behind it is left out."""
        names = sorted(self.streams)
        value, n, stderr = (np.stack([self.streams[s][k] for s in names], axis=1).tolist() for k in range(3))
        scalars = list(self.metrics)
        told = np.stack([self.metrics[m] for m in scalars], axis=1).tolist()
        for i, step in enumerate(self.steps.tolist()):
            rows = zip(names, value[i], n[i], stderr[i], strict=True)
            observed = tuple(Observation(*row) for row in rows if row[2])
            yield StepRecord(step, 0.0, dict(zip(scalars, told[i], strict=True)), observed)


def simulate(plan: Plan, steps: int | None = None) -> Run:
    """The run of a plan, or its first `steps` steps."""
    steps = plan.steps if steps is None else steps
    shift, shared = batches(plan, steps)
    x = smooth(plan, steps) + shift  # (T, C + 6)
    x = x[:, None, :] + _prompts(plan, steps)  # (T, G, C + 6)
    counts, hazard, fate, p = _sample(plan, x)
    streams = _hazard_streams(hazard, fate, counts) | _rate_streams(counts) | _legal_streams(p, counts, plan.turns)
    metrics = _scalars(plan, counts, shared)
    rng = np.random.default_rng([*plan.seed, 9])
    kept = (rng.random(steps) >= plan.noise.missing) & (np.arange(1, steps + 1) % plan.every == 0)
    return Run(
        plan,
        np.arange(1, steps + 1)[kept],
        {s: (v[kept], n[kept], e[kept]) for s, (v, n, e) in streams.items()},
        {m: v[kept] for m, v in metrics.items()},
    )


def _prompts(plan: Plan, steps: int) -> np.ndarray:
    """How prompts differ, (T, G, C + 6): hard ones are hard in all cells, and each cell has its own part."""
    rng, own = np.random.default_rng([*plan.seed, 7]), np.random.default_rng([*plan.seed, 8])
    scale = plan.noise.prompt / np.sqrt(1.5)
    hard = scale * rng.standard_t(6, (steps, plan.groups, 1))
    apart = 0.4 * plan.noise.prompt * own.standard_normal((steps, plan.groups, C + len(LEGAL)))
    signs = np.ones(C + len(LEGAL))
    signs[C + LEGAL.index("call")] = -1.0
    return np.asarray(hard * signs + apart)


def _sample(plan: Plan, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Counts (T, G), hazards of a turn (T, G, C), what hazard each turn survives (T, G, N), the others (T, G, 6)."""
    hazard = turn_hazard(x[..., :C])
    total = hazard.sum(axis=2)  # (T, G)
    turns = plan.rollouts * plan.turns
    fate = np.random.default_rng([*plan.seed, 10]).standard_exponential((*total.shape, turns))  # (T, G, N)
    broken = (fate < total[..., None]).sum(axis=2)
    cause = hazard / total[..., None]
    rng = [np.random.default_rng([*plan.seed, 11 + k]) for k in range(10)]
    empty = rng[0].binomial(broken, _share(cause, _EMPTY))
    in_call = rng[1].binomial(broken - empty, _ratio(_share(cause, _IN_CALL), 1 - _share(cause, _EMPTY)))
    p = sigmoid(x[..., C:])
    call, no_end, reopen, in_text, bad_json, cut = np.moveaxis(p, 2, 0)
    alive = turns - broken
    calls = rng[2].binomial(alive, call)
    bad = rng[3].binomial(calls, bad_json)
    on = rng[4].binomial(calls - bad, no_end)  # prose after the call
    cut_call = rng[5].binomial(on, cut)
    loops = rng[6].binomial(calls - bad - on, reopen**LOOP)
    text = alive - calls
    spoken = rng[7].binomial(text, in_text)
    cut_text = rng[8].binomial(text - spoken, cut)
    counts = {
        "turns": np.full(total.shape, turns),
        "broken": broken,
        "empty": empty,
        "truncated": cut_call + cut_text,
        "repeated": loops,
        "collapsed": empty + loops,
        "polluted": (broken - empty) + bad + on + spoken + cut_text,
        "attempted": calls + in_call + loops * (LOOP + 1) + spoken,
        "failed": bad + in_call + loops + spoken,
        "called": calls + in_call,
    }
    return counts, hazard, fate, p


def _share(cause: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return np.asarray(np.minimum(cause[..., cells].sum(axis=-1), 1.0))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(top / np.maximum(bottom, 1e-12), 0.0, 1.0))


def estimate(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`combine.py`'s ratio of sums over prompts with its clustered standard error: three (T,) from (T, G)."""
    n = (bottom > 0).sum(axis=1)
    whole = np.maximum(bottom.sum(axis=1), 1)
    value = np.where(bottom > 0, top, 0).sum(axis=1) / whole
    residual = np.where(bottom > 0, top - value[:, None] * bottom, 0.0)
    spread = np.sqrt(n / np.maximum(n - 1, 1) * (residual**2).sum(axis=1)) / whole
    return value, n, np.where(n < 2, 0.0, spread)


def _hazard_streams(hazard: np.ndarray, fate: np.ndarray, counts: dict[str, np.ndarray]) -> Streams:
    """Total, per token, per slot and per cell, from (T, G, C) and (T, G, N)."""
    tokens, slots = np.array(CELLS).T
    parts = {"hazard": np.ones(C, bool)} | {f"hazard:{t}": tokens == t for t in TOKENS}
    parts |= {f"hazard@{s}": slots == s for s in POSITIONS}
    parts |= {f"hazard:{t}@{s}": (tokens == t) & (slots == s) for t, s in CELLS}
    total = hazard.sum(axis=2)  # (T, G)
    broke = np.nonzero(fate < total[..., None])  # the turns that break: step, prompt, turn, each (B,)
    cell = broke[0] * total.shape[1] + broke[1]
    spent = fate[broke] / total[broke[:2]]  # the share of its positions that such a turn had, (B,)
    alone = np.array([POSITIONS[s] for s in slots]) == 1  # a slot of one position is seen whole or not at all
    alive = counts["turns"] - counts["broken"]
    inside = counts["called"].sum(axis=1) > 0  # (T,): without a call no position stands inside one
    streams = {}
    for name, own in parts.items():
        spread, whole = hazard[..., own & ~alone].sum(axis=2), hazard[..., own & alone].sum(axis=2)
        until = spread[broke[:2]] * spent + whole[broke[:2]]
        broken = np.bincount(cell, -np.expm1(-until), total.size).reshape(total.shape)
        share, n, stderr = estimate(-np.expm1(-(spread + whole)) * alive + broken, counts["turns"])
        share = np.minimum(share, 1 - 1e-12)
        if name.rpartition("@")[2] in ("open", "body", "close"):
            n = np.where(inside, n, 0)
        streams[name] = -np.log1p(-share), n, stderr / (1 - share)
    return streams


def _rate_streams(counts: dict[str, np.ndarray]) -> Streams:
    turns = counts["turns"]
    bad = ("polluted", "collapsed", "empty", "truncated", "repeated")
    streams = {name: estimate(counts[name], turns) for name in bad}
    streams["parse_failure"] = estimate(counts["failed"], counts["attempted"])
    return streams


def _legal_streams(p: np.ndarray, counts: dict[str, np.ndarray], per_rollout: int) -> Streams:
    """The degenerate sides, as probabilities at the first position of a slot."""
    call, no_end, reopen, in_text, _, _ = np.moveaxis(p, 2, 0)
    turns, calls = counts["turns"], counts["called"]
    prose = turns - calls
    return {
        "no_call_start": estimate((1 - call) * turns, turns),
        "no_end": estimate(no_end * calls, calls),
        "reopen": estimate(reopen * calls, calls),
        "call_in_text": estimate(in_text * prose, prose),
        "no_call": estimate((prose / turns) ** per_rollout, np.ones_like(turns)),
    }


def _scalars(plan: Plan, counts: dict[str, np.ndarray], shared: np.ndarray) -> dict[str, np.ndarray]:
    """What a trainer logs anyway, by TRL's names, each (T,)."""
    steps, groups = shared.shape[0], plan.groups
    rng = [np.random.default_rng([*plan.seed, 30 + k]) for k in range(8)]
    t = np.arange(1, steps + 1)
    start = np.random.default_rng([*plan.seed, 40]).uniform((-1.0, 0.1, 100.0, 0.05), (0.5, 1.0, 400.0, 0.5))
    gone = plan.kind == "content"
    rot = np.clip((t - plan.onset) * 0.1, 0, 6) if gone else np.zeros(steps)
    learned = -np.expm1(-t / plan.memory)
    skill = sigmoid((start[0] + 1.5 * learned - rot - 0.5 * shared)[:, None] + rng[0].standard_normal((steps, groups)))
    bad = counts["polluted"] + counts["collapsed"]
    sound = (1 - bad / counts["turns"]) ** plan.turns  # (T, G)
    solved = rng[1].binomial(plan.rollouts, np.clip(skill * sound, 0, 1)) / plan.rollouts
    reward, flat = solved.mean(axis=1), ((solved == 0) | (solved == 1)).mean(axis=1)
    cut, empty = (counts[k].sum(axis=1) / counts["turns"].sum(axis=1) for k in ("truncated", "empty"))
    share = bad.sum(axis=1) / counts["turns"].sum(axis=1)
    length = start[2] * plan.turns * (1 - 0.3 * learned) * np.exp(0.08 * rng[2].standard_normal(steps))
    length = length * (1 - empty) + 1500 * cut
    entropy = start[1] * (1 - 0.6 * learned) * np.exp(0.1 * rng[3].standard_normal(steps) + 0.15 * shared)
    kl = 0.02 * learned * np.exp(_random_walk(rng[4], steps)) + 0.05 * share
    norm = start[3] * np.exp(0.4 * rng[5].standard_t(4, steps)) * (1 + 2 * share) * (flat < 1)
    attempted = counts["attempted"].sum(axis=1)
    return {
        "reward": reward,
        "reward_std": np.sqrt(reward * (1 - reward)),
        "frac_reward_zero_std": flat,
        "entropy": entropy * (1 + share) * np.exp(-0.1 * rot),
        "kl": kl,
        "grad_norm": norm,
        "loss": 0.02 * rng[6].standard_normal(steps) + 0.04 * kl,
        "completions/mean_length": length,
        "completions/clipped_ratio": np.minimum(cut * plan.turns, 1.0),
        "tools/call_frequency": attempted / (groups * plan.rollouts),
        "tools/failure_frequency": 0.1 + 0.02 * rng[7].standard_normal(steps),
        "learning_rate": LEARNING_RATE * np.minimum(t / 10, 1.0),
    }


def _random_walk(rng: np.random.Generator, steps: int) -> np.ndarray:
    out = rng.standard_normal(steps) * 0.2
    for i in range(1, steps):
        out[i] += 0.8 * out[i - 1]
    return out
