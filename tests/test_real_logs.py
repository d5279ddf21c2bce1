"""The labelled public logs: all are read, and judged as people judged them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.importers import Imported, runs
from collapsewatch.records import Verdict
from collapsewatch.report import RunReport, analyze

LOGS = Path(__file__).parents[2] / "shared" / "data" / "logs"
pytestmark = pytest.mark.skipif(not LOGS.exists(), reason="needs the shared logs")

VERDICTS = {
    "healthy": {"healthy"},
    "collapsed": {"collapsed"},
    "degraded": {"degraded"},
    "dead_from_start": {"dead"},
    "silent_structural": {"silent"},
    "other": {"healthy", "silent"},  # labelled ambiguous: a constant answer that pays, and a noisy plateau
}
"""What we call each class of label."""
MAIN = ("reward", "score", "entropy", "kl", "grad_norm", "length", "clip", "accuracy", "em", "num_turns", "tool_calls")


@cache
def labels() -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in json.loads((LOGS / "manifest.json").read_text())}


@cache
def judged() -> dict[str, list[RunReport]]:
    """The reports on each labelled folder; one of them holds several seeds of a run."""
    found: dict[str, list[RunReport]] = {name: [] for name in labels()}
    for report in analyze(LOGS):
        found[Path(report.path).relative_to(LOGS).parts[0]].append(report)
    return found


def worst(name: str) -> RunReport:
    """The report that the label of a folder is about: of several seeds, one that broke."""
    return max(judged()[name], key=lambda r: (r.verdict is Verdict.COLLAPSED, len(r.alarms)))


def test_every_log_is_read_and_none_of_its_main_signals_is_unmapped() -> None:
    seen = set()
    for run in runs(LOGS):
        assert isinstance(run, Imported), run
        seen.add(run.path.relative_to(LOGS).parts[0])
        steps = [record.step for record in run.records]
        assert steps == sorted(set(steps)) and len(steps) >= 5 and not run.faults, run.path
        assert not [name for name in run.unmapped if name.rpartition("/")[2] in MAIN], run.path
        scored = {"reward", "accuracy"} & {name for record in run.records for name in record.metrics}
        assert scored, run.path
    assert seen == set(labels())


def test_at_least_22_of_25_logs_get_the_verdict_of_their_label() -> None:
    wrong = [n for n, label in labels().items() if str(worst(n).verdict) not in VERDICTS[label["class"]]]
    assert len(labels()) - len(wrong) >= 22, wrong
    seeds = {report.name.rpartition("/")[2]: str(report.verdict) for report in judged()["kg_tool_multiseed"]}
    assert seeds == {"0": "healthy", "1": "collapsed", "2": "collapsed", "3": "collapsed"}


def test_at_most_one_healthy_log_is_alarmed_about() -> None:
    healthy = [name for name, label in labels().items() if label["class"] == "healthy"]
    assert len(healthy) == 13
    assert sum(report.verdict is not Verdict.HEALTHY for name in healthy for report in judged()[name]) <= 1


def test_an_onset_is_within_two_logged_rows_of_the_labelled_one() -> None:
    for name, label in labels().items():
        report, onset = worst(name), label["onset_step"]
        if not onset:
            continue
        assert report.onset_step is not None, name
        first, last, count = report.steps
        assert first is not None and last is not None
        assert abs(report.onset_step - onset) <= 2 * (last - first) / (count - 1), name
