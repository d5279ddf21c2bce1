"""Runs that lie in several files: the ranks of one run, and the pieces of a run that was resumed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from ..records import Observation, StepRecord
from .base import Imported

_SEED = re.compile(r"(?:seed|(?<![a-z])s)[-_=]?(\d+)", re.IGNORECASE)
_GAP = 3  # logged rows that may be missing between two pieces: what a crash did not write any more


def averaged(runs: Iterable[Imported]) -> list[Imported]:
    """One run out of all with the same name; a value is the mean over those that have it at the step."""
    named: dict[str, list[Imported]] = defaultdict(list)
    for run in runs:
        named[run.name].append(run)
    return [_mean(same) if len(same) > 1 else same[0] for same in named.values()]


def joined(runs: Iterable[Imported]) -> list[Imported]:
    """The runs of one folder, with pieces put behind each other: each step as the piece that came last has it.

    A piece begins in the middle of its steps, and goes on where exactly one other run of its source ends, or
    the one whose name is most like its own.
    """
    whole: list[Imported] = []
    for run in sorted(runs, key=lambda run: run.records[0].step if run.records else 0):
        at = _begun(run, whole)
        if at is None:
            whole.append(run)
        else:
            whole[at] = _continued(whole[at], run)
    return sorted(whole, key=lambda run: (run.path, run.name))


def _mean(same: Sequence[Imported]) -> Imported:
    steps: dict[int, list[StepRecord]] = defaultdict(list)
    for run in same:
        for record in run.records:
            steps[record.step].append(record)
    records = tuple(_mean_record(steps[step]) for step in sorted(steps))
    unmapped = tuple(sorted({name for run in same for name in run.unmapped}))
    return replace(same[0], records=records, unmapped=unmapped, faults=tuple(f for run in same for f in run.faults))


def _mean_record(records: Sequence[StepRecord]) -> StepRecord:
    metrics: dict[str, list[float]] = defaultdict(list)
    streams: dict[str, list[Observation]] = defaultdict(list)
    for record in records:
        for name, value in record.metrics.items():
            metrics[name].append(value)
        for o in record.observations:
            streams[o.stream].append(o)
    observed = (Observation(s, fmean(o.value for o in own), sum(o.n for o in own)) for s, own in streams.items())
    return replace(records[0], metrics={n: fmean(v) for n, v in metrics.items()}, observations=tuple(observed))


def _begun(run: Imported, others: Sequence[Imported]) -> int | None:
    """Where among the others the run stands that this one goes on with."""
    if not run.dated or len(run.records) < 2 or run.records[0].step <= 2 * _stride(run):
        return None
    first, last = run.records[0].step, run.records[-1].step
    found = [
        (_alike(run.path.name, other.path.name), i)
        for i, other in enumerate(others)
        if (other.source, other.dated) == (run.source, True)
        and other.path != run.path
        and not _other_seed(run.path.name, other.path.name)
        and len(other.records) > 1
        and other.records[0].step < first <= other.records[-1].step + _GAP * _stride(other)
        and other.records[-1].step < last
    ]
    found.sort(reverse=True)
    return found[0][1] if found and (len(found) == 1 or found[0][0] > found[1][0]) else None


def _stride(run: Imported) -> float:
    """Steps between two logged rows."""
    return (run.records[-1].step - run.records[0].step) / (len(run.records) - 1)


def _continued(begun: Imported, rest: Imported) -> Imported:
    first = rest.records[0].step
    records = tuple(record for record in begun.records if record.step < first) + rest.records
    fault = f"{rest.path.name}: goes on with {begun.path.name} at step {first}"
    unmapped = tuple(sorted({*begun.unmapped, *rest.unmapped}))
    return replace(begun, records=records, unmapped=unmapped, faults=(*begun.faults, *rest.faults, fault))


def _other_seed(a: str, b: str) -> bool:
    """Do two names say two seeds?"""
    seeds = [_SEED.search(name) for name in (a, b)]
    return len({seed[1] for seed in seeds if seed}) == 2


def _alike(a: str, b: str) -> int:
    """How many characters two names begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
