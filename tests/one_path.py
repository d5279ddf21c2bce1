"""One path: what a run stored live is what a replay of its records and events makes of them, bit for bit."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from collapsewatch.detectors import Detection, build
from collapsewatch.queries import open_run
from collapsewatch.records import Alarm
from collapsewatch.replay import judged


def assert_one_path(run_dir: Path) -> int:
    """Compare stored and replayed alarms of a run that had no faults; returns how many there were.

    A run that goes on from a state in another folder tells only half of it. Of steps that a resumed training took
    again, the alarms of the first time are still in the table.
    """
    with closing(open_run(run_dir)) as run:
        events, stored, records = run.events(), run.alarms(), list(run.records())
        again = {
            step for (step,) in run.query("SELECT step FROM steps WHERE rank = 0 GROUP BY ALL HAVING count(*) > 1").rows
        }
    started = [json.loads(event.detail) for event in events if event.name == "started"]
    if not started or any(event.name == "fault" or "faults" in event.detail for event in events):
        return 0
    if records and records[0].step > 1:
        return 0
    budget = started[-1]["fa_per_10k"]
    replayed = [alarm for _, alarms in judged(Detection(build(fa_per_10k=budget)), records, events) for alarm in alarms]
    assert all(alarm in stored for alarm in replayed)

    def once(alarms: list[Alarm]) -> list[Alarm]:
        return [alarm for alarm in alarms if alarm.step not in again]

    assert once(stored) == once(replayed)
    return len(stored)
