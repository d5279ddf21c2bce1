"""What a step of detection costs, for as many streams as a tokenizer has, and for thousands."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from plan import POSITIONS, plan
from simulate import simulate

from collapsewatch.detectors import Detection
from collapsewatch.records import Observation, StepRecord

GOALS = {64: 100.0, 4000: 1000.0}
"""Microseconds a step, by streams."""


Rows = list[tuple[str, float, int, float]]


def steps_of(streams: int, steps: int) -> list[Rows]:
    """A healthy run's observations, step by step, with the cells of many more tokens."""
    run = simulate(plan("train", 0, "healthy"), steps)
    noise = np.random.default_rng(0).lognormal(-9, 1, (len(run.steps), streams))
    more = [f"hazard:<token_{k}>@{slot}" for k in range(streams // 5 + 1) for slot in POSITIONS]
    out = []
    for i, record in enumerate(run.records()):
        own = [(o.stream, o.value, o.n, o.stderr) for o in record.observations]
        extra = [(s, v, run.plan.groups, v / 3) for s, v in zip(more, noise[i].tolist(), strict=False)]
        out.append((own + extra)[:streams])
    return out


def record(step: int, rows: Rows) -> StepRecord:
    """A record as a step of training makes it: fresh objects, every name spelled anew."""
    return StepRecord(step, 0.0, {}, tuple(Observation(s[:1] + s[1:], v, n, e) for s, v, n, e in rows))


def detection() -> Callable[[StepRecord], Any]:
    return Detection().update


def reading() -> Callable[[StepRecord], Any]:
    """The least that anybody must do: look at every value once."""
    return lambda record: np.array([o.value for o in record.observations]).max()


def page_hinkley() -> Callable[[StepRecord], Any]:
    """A Page-Hinkley test per stream in plain Python, as river has it."""
    held: dict[str, tuple[int, float, float, float]] = {}

    def update(record: StepRecord) -> None:
        for o in record.observations:
            n, mean, total, least = held.get(o.stream, (0, 0.0, 0.0, 0.0))
            n += 1
            mean += (o.value - mean) / n
            total += o.value - mean - 0.005
            held[o.stream] = n, mean, total, min(least, total)

    return update


def measure(rounds: int, steps: int = 60) -> dict[int, dict[str, Any]]:
    """CPU microseconds a step, rounds alternating: medians with minimum and maximum, and ours over the others."""
    out: dict[int, dict[str, Any]] = {}
    kinds = {"collapsewatch": detection, "Page-Hinkley each": page_hinkley, "reading": reading}
    for streams in GOALS:
        rows = steps_of(streams, steps)
        cost: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, make in kinds.items():
                update, spent = make(), 0.0
                for step, own in enumerate(rows):
                    made = record(step + 1, own)
                    begin = time.thread_time()
                    update(made)
                    if step >= 10:  # streams join on the first steps
                        spent += time.thread_time() - begin
                cost[name].append(spent / (len(rows) - 10) * 1e6)
        out[streams] = {
            name: {"median_us": median(own), "min_us": min(own), "max_us": max(own)} for name, own in cost.items()
        }
    return out
