r"""Real collapses: runs that are trained here until they break, and healthy ones, judged by detection as it is now.

Runs that stand in `--runs` are not trained again, so that the command may be interrupted. The first
half (`dev`) may be looked at while detectors change; the second (`held`) is for the end.

    python benchmarks/detection/induced [--quick] [--json] [--half dev|held|all] [--runs DIR] [--peers PEERS]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import beside
import table
from runs import SEEDS, Plan, plans, train
from worlds import WORLDS

from collapsewatch.records import Event, StepRecord

QUICK = (Plan("high_rate", WORLDS[1], 0), Plan("plain", WORLDS[1], 0))
HALVES = {"dev": SEEDS[:1], "held": SEEDS[1:], "all": SEEDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one run that breaks and one that does not, both short")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--half", choices=HALVES, default="all", help="which seeds")
    parser.add_argument("--runs", type=Path, default=Path("logs") / "induced", help="folder that holds the runs")
    parser.add_argument("--peers", type=Path, help="folder with river/, rlwatch/, rldoctor/ and ruptures/")
    parser.add_argument("--no-training", action="store_true", help="judge the runs that stand there")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            made = {plan: table.read(train(plan, Path(folder), 120, steps=25)) for plan in QUICK}
    else:
        made = trained(options.runs, HALVES[options.half], not options.no_training)
    rows = [table.row(plan, *read) for plan, read in made.items()]
    found = table.sums(rows)
    others = list(beside.methods([beside.Traces.of(records) for records, _ in made.values()], rows, options.peers))
    if options.json:
        print(json.dumps({"runs": table.plain(rows), "methods": others, **found}))
        return
    print(table.markdown(rows))
    print(f"\n{beside.markdown(others)}")
    print("".join(f"\n{name}: {value}" for name, value in found.items()))
    print(
        f"\ninduced: {found['collapsed']} real collapses, recall {found['recall']:.2f},"
        f" early {found['early_recall']:.2f}, median lead {found['lead_median']} steps;"
        f" {found['false_alarms']} alarms in {found['healthy']} healthy runs"
    )


def trained(runs: Path, seeds: tuple[int, ...], training: bool) -> dict[Plan, tuple[list[StepRecord], list[Event]]]:
    """What every planned run of these seeds left; trains those that are missing, and says so."""
    wanted = [plan for plan in plans() if plan.seed in seeds]
    runs.mkdir(parents=True, exist_ok=True)
    for i, plan in enumerate(wanted):
        if training and not (runs / plan.name).exists():
            start = time.perf_counter()
            train(plan, runs)
            print(
                f"{i + 1}/{len(wanted)} {plan.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
            )
    return {plan: table.read(runs / plan.name) for plan in wanted if (runs / plan.name).exists()}


if __name__ == "__main__":
    main()
