"""What is drawn once for a simulated run: its size, its noise, its benign events, and how it collapses.

Every range here is an assumption; after a first look at training runs four kinds were slowed to the time scales of the
design's reference. Two anchors are real: the cells are those that a Hermes format has in a trained run, and the growth
rates span what public collapses show, from one step to a few hundred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPLITS = {"train": 1, "test": 2, "stress": 3, "fresh_stress": 5, "fresh": 6}
"""First number of each seed. `train` is for tuning; `fresh` was looked at on 2026-11-26: a claim needs new ones."""

COLLAPSES = ("instant", "spike", "drift", "relapse", "eos_empty", "repeat", "pollution", "eos_starve")
"""Collapses of structure."""
KINDS = ("healthy", *COLLAPSES, "content")

TOKENS = ("<tool_call>", "</tool_call>", "<|im_end|>", "<|endoftext|>", "<|im_start|>", "<tool_response>")
TOKENS += ("</tool_response>",)
_SLOTS_OF = {
    "<tool_call>": "body open",
    "</tool_call>": "close open start text",
    "<|im_end|>": "body open start",
    "<|endoftext|>": "body open start",
    "<|im_start|>": "body close open start text",
    "<tool_response>": "body close open start text",
    "</tool_response>": "body close open start text",
}
CELLS: tuple[tuple[str, str], ...] = tuple((t, s) for t in TOKENS for s in _SLOTS_OF[t].split())
"""The 27 (token, slot) where a Hermes format forbids the token."""
ENDS = ("<|im_end|>", "<|endoftext|>")
POSITIONS = {"start": 1, "open": 1, "body": 25, "close": 1, "text": 30}
"""Scored positions per turn."""

LEGAL = ("call", "no_end", "reopen", "call_in_text", "bad_json", "truncated")
"""The other log-odds of a turn: it calls; it goes on after a call with prose; it calls again; a call in prose; its
arguments are broken; it never ends. Up is bad in all but the first."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations in nat, and how often benign things happen."""

    batch: float  # one factor per step, shared by all cells
    freedom: int  # of its Student t
    prompt: float  # per prompt group, Student t with 6 degrees
    wander: float  # slow drift of each log-odds, a memory of 40 steps
    jitter: float  # of each log-odds per step, autocorrelated 0.4
    outlier: float  # chance per step of a freak batch
    missing: float  # share of steps that are not logged


@dataclass(frozen=True)
class Plan:
    """One run. Steps count from 1; arrays are over `CELLS` (C,) and `LEGAL` (6,)."""

    split: str
    index: int
    kind: str
    steps: int
    groups: int
    rollouts: int
    turns: int
    every: int  # logged every so many steps
    noise: Noise
    cells: np.ndarray  # (C,) log-odds per position at step 1
    legal: np.ndarray  # (6,)
    trend: np.ndarray  # (C + 6,) what learning adds in the long run
    memory: float  # steps in which learning does most of that
    bumps: tuple[tuple[int, int, float, tuple[int, ...]], ...]  # first step, length, height, columns
    jumps: tuple[tuple[int, np.ndarray], ...]  # first step, (C + 6,) change for good: announced data changes
    onset: int  # first step of the collapse; beyond `steps` in a healthy run
    rates: np.ndarray  # (C + 6,) nat per step from the onset; 0 where nothing happens
    heights: np.ndarray  # (C + 6,) nat above the start at which growth ends
    sawtooth: tuple[int, float] = (0, 0.0)  # relapse: period, and the share of a rise that is lost again
    curved: bool = False  # growth as a logistic curve instead of a line

    @property
    def seed(self) -> list[int]:
        return [SPLITS[self.split], self.index]

    @property
    def tokens(self) -> set[str]:
        """The control tokens that break: the planted truth of the attribution."""
        grown = {CELLS[i][0] for i in np.flatnonzero(self.rates[: len(CELLS)])}
        own = {"call": "<tool_call>", "no_end": "<|im_end|>", "reopen": "<tool_call>", "call_in_text": "<tool_call>"}
        own |= {"truncated": "<|im_end|>"}
        return grown | {own[LEGAL[i]] for i in np.flatnonzero(self.rates[len(CELLS) :])}


def plan(split: str, index: int, kind: str) -> Plan:
    """The run `index` of a split; the same numbers give the same run."""
    rng = np.random.default_rng([SPLITS[split], index, 0])
    stress = split in ("stress", "fresh_stress")
    noise = Noise(
        batch=rng.uniform(0.15, 0.3) * (1.6 if stress else 1.0),
        freedom=3 if stress else 5,
        prompt=rng.uniform(0.3, 0.8) * (1.3 if stress else 1.0),
        wander=rng.uniform(0.1, 0.3) * (1.4 if stress else 1.0),
        jitter=rng.uniform(0.05, 0.2),
        outlier=0.008 if stress else 0.004,
        missing=rng.uniform(0.02, 0.1) if rng.random() < 0.3 else 0.0,
    )
    low, high = (2, 24) if stress else (4, 60)
    groups = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
    cells = rng.normal(-9.0, 1.5, len(CELLS)) + rng.normal(0.0, 0.7) - np.log([POSITIONS[s] for _, s in CELLS])
    legal = np.array([rng.uniform(a, b) for a, b in ((0.8, 3), (-7, -3), (-7, -3), (-8, -4), (-4.5, -2), (-7, -3.5))])
    trend = np.concatenate([rng.normal(-0.7, 0.5, len(CELLS)), [rng.uniform(0, 1), 0, 0, 0, rng.uniform(-1.2, 0), 0]])
    onset, length = int(rng.integers(30, 250)), int(rng.integers(200, 600))
    rates, heights, sawtooth = _collapse(kind, cells + trend[: len(CELLS)], legal, rng)
    if kind != "healthy":
        longest = float((np.abs(heights) / np.maximum(np.abs(rates), 1e-9))[rates != 0].max(initial=30.0))
        length = onset + int(longest * (3.0 if sawtooth[0] else 1.2)) + 40
    else:
        onset = length + 1
    columns = len(CELLS) + len(LEGAL)
    bumps = []
    for _ in range(int(rng.integers(1, 3)) if rng.random() < (0.4 if stress else 0.25) else 0):
        first = int(rng.integers(10, max(11, min(length, onset) - 25)))
        hit = (*np.flatnonzero(rng.random(columns) < 0.3).tolist(),)
        bumps.append((first, int(rng.integers(5, 21)), float(rng.uniform(0.8, 2.2)), hit))
    jumps = []
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.3 else 0):
        change = rng.uniform(-0.5, 0.5) + rng.normal(0, 0.1, columns)
        change[len(CELLS) :] = rng.uniform(-0.7, 0.7, len(LEGAL))
        jumps.append((int(rng.integers(20, max(21, min(length, onset) - 10))), change))
    return Plan(
        split, index, kind, length, groups, 8, int(rng.integers(1, 5)), 2 if rng.random() < 0.2 else 1, noise, cells,
        legal, trend, float(rng.uniform(40, 200)), tuple(bumps), tuple(sorted(jumps, key=lambda j: j[0])), onset,
        rates, heights, sawtooth, stress,
    )  # fmt: skip


def _collapse(
    kind: str, settled: np.ndarray, legal: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[int, float]]:
    """Rates and heights (C + 6,) of a collapse, and its saw-tooth; `settled` (C,) log-odds are where it begins."""
    rates, heights = np.zeros(len(CELLS) + len(LEGAL)), np.zeros(len(CELLS) + len(LEGAL))
    column = {name: len(CELLS) + i for i, name in enumerate(LEGAL)}

    def grow(columns: list[int], low: float, high: float) -> None:
        """Cells rise until they break 80 to 95 turns of 100, legal log-odds to +1.5 and more."""
        rate = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        for c in columns:
            own = c < len(CELLS)
            # A loop needs four openings in a row, so that log-odds must rise higher.
            low_end = 3.5 if c == column["reopen"] else 1.5
            hazard = rng.uniform(1.6, 3.0) / POSITIONS[CELLS[c][1]] if own else 0.0
            level = float(np.log(np.expm1(hazard))) if own else float(rng.uniform(low_end, low_end + 2.5))
            rates[c] = rate * rng.uniform(0.8, 1.2)
            heights[c] = max(1.0, level - (settled[c] if own else legal[c - len(CELLS)]))

    def some(allowed: list[int]) -> list[int]:
        """One to three cells of one token."""
        token = CELLS[int(rng.choice(allowed))][0]
        own = [c for c in allowed if CELLS[c][0] == token]
        return [int(c) for c in rng.choice(own, size=min(len(own), int(rng.integers(1, 4))), replace=False)]

    end_at_start = [CELLS.index((token, "start")) for token in ENDS]
    others = [c for c in range(len(CELLS)) if c not in end_at_start]
    sawtooth = (0, 0.0)
    if kind == "instant":
        grow(some(others), 1.0, 5.0)
    elif kind == "spike":
        grow(some(others), 0.2, 0.8)
    elif kind == "drift":
        grow(some(others), 0.02, 0.08)
    elif kind == "relapse":
        grow(some(others), 0.1, 0.35)
        sawtooth = (int(rng.integers(10, 30)), float(rng.uniform(0.3, 0.6)))
    elif kind == "eos_empty":
        grow(end_at_start[: int(rng.integers(1, 3))], 0.1, 0.4)
    elif kind == "repeat":
        grow([column["reopen"]], 0.13, 0.5)
    elif kind == "pollution":
        grow([column["no_end"], column["call_in_text"]], 0.05, 0.16)
        grow([CELLS.index(("</tool_call>", "text"))], 0.05, 0.16)
    elif kind == "eos_starve":
        grow([column["no_end"], column["truncated"]], 0.05, 0.2)
    elif kind not in ("healthy", "content"):
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    return rates, heights, sawtooth
