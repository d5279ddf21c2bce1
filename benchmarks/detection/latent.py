"""The log-odds behind a run, step by step, and the structural success that follows from them."""

from __future__ import annotations

import numpy as np
from plan import CELLS, LEGAL, POSITIONS, Plan

C = len(CELLS)
N_POSITIONS = np.array([POSITIONS[slot] for _, slot in CELLS], float)  # (C,)
LOOP = 4  # openings in a row that make a turn a loop
WARMUP = 10  # steps of learning-rate warm-up


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def turn_hazard(x: np.ndarray) -> np.ndarray:
    """Expected illegal emissions per turn from log-odds per position, both (..., C): the sum of -log(1 - p)."""
    return np.asarray(np.logaddexp(0.0, x) * N_POSITIONS)


def smooth(plan: Plan, steps: int) -> np.ndarray:
    """Log-odds without the noise of batches, (steps, C + 6): learning, wandering, bumps, jumps and the collapse.

    Causal, and drawn step after step: more steps leave the earlier ones as they were.
    """
    rng = np.random.default_rng([*plan.seed, 1])
    t = np.arange(1, steps + 1, dtype=float)[:, None]
    learned = -np.expm1(-np.maximum(t - WARMUP / 2, 0) / plan.memory)
    x = np.concatenate([plan.cells, plan.legal]) + plan.trend * learned
    x = x + plan.noise.wander * _autocorrelated(rng, steps, x.shape[1], float(np.exp(-1 / 40)))
    for first, length, height, columns in plan.bumps:
        x[first - 1 : first - 1 + length, list(columns)] += _bad(columns) * height
    for first, change in plan.jumps:
        x[first - 1 :] += change
    return np.asarray(x + _growth(plan, t[:, 0]))


def _bad(columns: tuple[int, ...]) -> np.ndarray:
    """The sign of the bad direction: a call less, of all others more."""
    return np.array([-1.0 if c == C + LEGAL.index("call") else 1.0 for c in columns])


def _autocorrelated(rng: np.random.Generator, steps: int, columns: int, keep: float) -> np.ndarray:
    """Unit-variance AR(1), (steps, columns)."""
    out = rng.standard_normal((steps, columns))
    fresh = float(np.sqrt(1 - keep**2))
    for i in range(1, steps):
        out[i] = keep * out[i - 1] + fresh * out[i]
    return out


def _growth(plan: Plan, t: np.ndarray) -> np.ndarray:
    """What the collapse adds, (steps, C + 6)."""
    since = np.maximum(t - plan.onset, 0.0)
    period, lost = plan.sawtooth
    if period:  # each tooth ends higher than the last, and loses a share of its own rise
        teeth, into = np.divmod(since, period)
        since = teeth * period * (1 - lost) + into
    rise = since[:, None] * plan.rates  # (steps, C + 6)
    if not plan.curved:
        return np.asarray(np.minimum(rise, plan.heights))
    # A logistic curve with the same greatest slope, 2 % of the height at the onset.
    height = np.maximum(plan.heights, 1e-9)
    shape = sigmoid(4 * rise / height - 3.9)
    start = sigmoid(np.array(-3.9))
    return np.asarray(np.where(since[:, None] > 0, plan.heights * (shape - start) / (1 - start), 0.0))


def batches(plan: Plan, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What one batch adds to all its prompts (steps, C + 6), and the shared factor alone (steps,)."""
    rng, chance, freak = (np.random.default_rng([*plan.seed, k]) for k in (2, 3, 4))
    noise = plan.noise
    shared = noise.batch * rng.standard_t(noise.freedom, steps) / np.sqrt(noise.freedom / (noise.freedom - 2))
    hit = chance.random(steps) < noise.outlier
    shared = shared + np.where(hit, freak.uniform(1.5, 3.5, steps), 0.0)
    own = noise.jitter * _autocorrelated(np.random.default_rng([*plan.seed, 5]), steps, C + len(LEGAL), 0.4)
    loads = np.random.default_rng([*plan.seed, 6]).uniform(0.3, 1.0, C + len(LEGAL))
    loads[C + LEGAL.index("call")] *= -0.5
    return own + shared[:, None] * loads, shared


def success(x: np.ndarray) -> np.ndarray:
    """The share of turns that are healthy, (steps,), from log-odds (steps, C + 6)."""
    call, no_end, reopen, in_text, bad_json, truncated = sigmoid(x[:, C:]).T
    alive = np.exp(-turn_hazard(x[:, :C]).sum(axis=1))
    calls = (1 - bad_json) * (1 - no_end) * (1 - reopen**LOOP)
    return np.asarray(alive * (call * calls + (1 - call) * (1 - in_text) * (1 - truncated)))


def half_step(plan: Plan) -> int:
    """The first step after the onset with less than half of the structural success before it; 0 if none."""
    if plan.onset > plan.steps:
        return 0
    share = success(smooth(plan, plan.steps))
    before = share[max(0, plan.onset - 21) : plan.onset - 1].mean()
    below = np.flatnonzero(share[plan.onset - 1 :] < before / 2)
    return plan.onset + int(below[0]) if below.size else 0
