r"""How early and how falsely collapse is alarmed on simulated runs: the product's detection, charts and peers.

    pip install --target PEERS/river river==0.26.1          # likewise ruptures==1.1.10, rlwatch==0.5.1,
    pip install --target PEERS/rldoctor rldoctor==0.2.0     # each in a folder of its own

    python benchmarks/detection [--quick] [--json] [--split train|test|stress|fresh|fresh_stress ...] [--peers PEERS]

A false alarm is a first alarm before the true onset; a run that has one counts as missed. Early is an alarm before
the true structural success has halved, lead the steps between. Everything is seeded; `train` alone is for tuning, and
the thresholds of every other method are set on it. `--speed` measures the cost per step and nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import charts
import field
import ours
import speed
from plan import SPLITS
from report import report
from score import by_kind, score

HEALTHY, EACH = 150, 25  # runs, of each kind of collapse
QUICK = 12, 2


def ourselves(data: field.Field) -> dict[str, Any]:
    """The product's detection at every setting."""
    found = [ours.watch(run) for run in data.runs()]
    steps = [f.step for f in found]
    rows = {"collapsewatch": steps, "the same, events marked": [f.marked for f in found]}
    rows["the same, bound 50"] = [f.wide for f in found]
    rows["the same, without probabilities"] = [f.outcomes for f in found]
    content = [s >= t.plan.onset for t, s in zip(data.truths, steps, strict=True) if t.plan.kind == "content"]
    bounds = {b: score(data.truths, [f.bounds[i] for f in found]) for i, b in enumerate(ours.BOUNDS)}
    return {
        "rows": {name: score(data.truths, own) for name, own in rows.items()},
        "kinds": by_kind(data.truths, steps),
        "content_alarmed": sum(content) / len(content),
        "attribution": ours.attribution(data.truths, found),
        "bounds": bounds,
        "false": [
            {
                "kind": t.plan.kind,
                "index": t.plan.index,
                "step": f.step,
                "detector": f.alarm.detector,
                "marked": f.marked,
            }
            for t, f in zip(data.truths, found, strict=True)
            if f.alarm and f.step < t.plan.onset
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="30 runs instead of 375, without peers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--split", choices=tuple(SPLITS), nargs="+", default=["test"], help="seeds; fresh ones: one look"
    )
    parser.add_argument("--peers", type=Path, help="folder with river/, ruptures/, rlwatch/, rldoctor/")
    parser.add_argument("--speed", action="store_true", help="the cost per step only")
    options = parser.parse_args()
    healthy, each = QUICK if options.quick else (HEALTHY, EACH)
    result: dict[str, Any] = {"speed": speed.measure(3 if options.quick else 15), "splits": {}}
    if not options.speed:
        train = field.make("train", healthy, each)
        for split in options.split:
            data = train if split == "train" else field.make(split, healthy, each)
            own = {"runs": len(data.truths), "ours": ourselves(data), "charts": charts.table(train, data)}
            result["splits"][split] = own | {"peers": {} if options.quick else field.peers(options.peers, train, data)}
    print(json.dumps(result) if options.json else report(result))


if __name__ == "__main__":
    main()
