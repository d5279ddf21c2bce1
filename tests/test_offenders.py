"""The rollouts behind an alarm, against a ranking in plain Python."""

from __future__ import annotations

import io
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from collapsewatch.offenders import offenders
from collapsewatch.queries import open_run
from collapsewatch.records import Alarm, Driver, Observation, RolloutRow, StepRecord, Structure, Tier, TurnRow
from collapsewatch.report import analyze
from collapsewatch.store import Store
from collapsewatch.summary import print_summary

REASONS = {"ok": "response", "empty": "collapsed", "truncated": "polluted", "unclosed_call": "polluted"}


def record(step: int, seed: int, broken: bool = False) -> StepRecord:
    """Six rollouts of one to three turns; those of a broken step are mostly not sound."""
    draw = np.random.default_rng([step, seed])
    turns, rollouts = [], []
    for i in range(6):
        mine = []
        for k in range(1 + int(draw.integers(3))):
            reason = str(draw.choice(list(REASONS), p=[0.1, 0.2, 0.3, 0.4] if broken else [0.94, 0.02, 0.02, 0.02]))
            stop = "length" if reason == "truncated" else "eos"
            calls = int(draw.integers(2))
            mine.append(TurnRow(i, k, REASONS[reason], reason, stop, 9, calls, float(draw.exponential(0.3))))
        worst = next((s for s in ("collapsed", "polluted") if s in [t.structure for t in mine]), "response")
        hazard = sum(t.hazard for t in mine) if i else math.nan  # one that nobody scored
        rollouts.append(RolloutRow(i, 0, draw.random(), 0.0, len(mine), 9, 1, 0, worst, hazard))
        turns += mine
    bad = sum(t.structure == "polluted" for t in turns) / len(turns)
    return StepRecord(step, 0.0, {}, (Observation("polluted", bad, 16),), (), tuple(turns), tuple(rollouts))


def stored(folder: Path, records: list[StepRecord], *others: StepRecord) -> Path:
    for rank, rows in ((1, others), (0, records)):  # rank 0 merges what others left
        store = Store(folder, rank=rank)
        for row in rows:
            store.log_step(row)
        store.close()
    return folder


def alarm(stream: str, onset: int = 30, step: int = 40) -> Alarm:
    return Alarm(step, Tier.ALARM, "e_detector", (Driver(stream, 1.0, 0.5, 0.0, 0.1),), onset, 6.0, 5.3)


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        ("polluted", lambda t: t.structure == "polluted"),
        ("parse_failure", lambda t: t.structure in ("polluted", "collapsed")),
        ("empty", lambda t: t.reason == "empty"),
        ("truncated", lambda t: t.stop == "length"),
        ("no_call", lambda t: t.calls == 0),
        ("hazard:<tool_call>@text", None),
    ],
)
def test_they_are_ranked_by_what_the_driver_counts_then_by_hazard(tmp_path: Path, stream: str, counts) -> None:
    first = [record(step, 0, step >= 30) for step in range(1, 50)]
    again = [record(step, 1, True) for step in range(35, 45)]  # a resumed training took these steps again
    other = record(33, 2, True)
    path = stored(tmp_path / "run", [*first, *again], other)
    valid = {r.step: r for r in [*first, *again]}
    rows = []
    for rank, r in [(0, valid[step]) for step in range(30, 41)] + [(1, other)]:
        for rollout in r.rollouts:
            hits = sum(counts(t) for t in r.turns if t.rollout == rollout.rollout) if counts else 0
            hazard = 0.0 if math.isnan(rollout.hazard) else rollout.hazard
            if hits or (counts is None and hazard):
                rows.append((-hits, -hazard, r.step, rank, rollout.rollout))
    with closing(open_run(path)) as run:
        found = offenders(run, alarm(stream), limit=7)
        assert [(-o.turns, -o.hazard, o.step, o.rank, o.rollout) for o in found] == sorted(rows)[:7]
        assert offenders(run, alarm(stream, 60, 70)) == []


def test_analyze_names_them(tmp_path: Path) -> None:
    stored(tmp_path / "run", [record(step, 0, step >= 30) for step in range(1, 60)])
    (report,) = analyze(tmp_path)
    assert report.offenders and "offenders" not in report.to_dict()
    assert all(report.onset_step <= o.step + 10 and o.structure != Structure.RESPONSE for o in report.offenders)
    text = io.StringIO()
    print_summary([report], Console(file=text, width=200))
    assert str(report.offenders[0]) in " ".join(text.getvalue().split())
