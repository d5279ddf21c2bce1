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


def records(streams: int, steps: int) -> list[StepRecord]:
    """A healthy run with the cells of many more tokens; every step spells its names anew, as training does."""
    run = simulate(plan("train", 0, "healthy"), steps)
    noise = np.random.default_rng(0).lognormal(-9, 1, (len(run.steps), streams))
    out = []
    for i, record in enumerate(run.records()):
        more = [f"hazard:<token_{k}>@{slot}" for k in range(streams // 5 + 1) for slot in POSITIONS]
        extra = [Observation(s, v, run.plan.groups, v / 3) for s, v in zip(more, noise[i].tolist(), strict=False)]
        own = [Observation(o.stream[:1] + o.stream[1:], o.value, o.n, o.stderr) for o in record.observations]
        out.append(StepRecord(record.step, 0.0, {}, tuple((own + extra)[:streams])))
    return out


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
    """Microseconds a step, rounds alternating: medians with minimum and maximum, and ours over the others."""
    out: dict[int, dict[str, Any]] = {}
    kinds = {"collapsewatch": detection, "Page-Hinkley each": page_hinkley, "reading": reading}
    for streams in GOALS:
        made = records(streams, steps)
        cost: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, make in kinds.items():
                update = make()
                for record in made[:10]:  # streams join on the first steps
                    update(record)
                begin = time.perf_counter()
                for record in made[10:]:
                    update(record)
                cost[name].append((time.perf_counter() - begin) / len(made[10:]) * 1e6)
        out[streams] = {
            name: {"median_us": median(own), "min_us": min(own), "max_us": max(own)} for name, own in cost.items()
        }
    return out
