r"""What `collapsewatch analyze` says of labelled public logs, and how fast it reads, beside its peers.

The labels' folder holds one folder per log and `manifest.json`; without it that part is left out. The peers stand
each in a folder of its own, so that nothing installed is replaced; without them only we are measured:

    pip install --target PEERS/rldoctor rldoctor==0.2.0
    pip install --target PEERS/rlwatch rlwatch==0.5.1

    python benchmarks/analyze [--quick] [--json] [--peers PEERS] [--logs ../shared/data/logs]

Neither peer reads the console of a trainer: they get our reading of each log, as JSON lines under TRL's names. Of the
console of 1 GB, rl-doctor gets verl's own JSON lines of the same steps. A judgement counts as critical where we say
`collapsed`, `dead` or `silent`, and they say `critical`. Seconds are of whole processes, start included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import verl_log

from collapsewatch.importers import Imported, runs

HERE = Path(__file__).parent
OURS = [sys.executable, "-m", "collapsewatch", "analyze", "--json"]
CRITICAL = {"collapsed", "dead", "silent"}
EXPECTED = {"dead_from_start": "dead", "silent_structural": "silent"}
GOAL_S, GOAL_MB = 20, 500
BYTES, QUICK_BYTES = 1_000_000_000, 100_000_000
NOISE = 95_000  # bytes a step of other output: a rollout or two, progress bars, warnings of workers


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(command: list[str], path: Path | None = None) -> tuple[str, Cost]:
    """A process's output, and what it cost; a small one starts it, because the peak counts what its parent had."""
    environment = dict(os.environ, OMP_NUM_THREADS="1") | ({"PYTHONPATH": str(path)} if path else {})
    starter = [sys.executable, "-S", str(HERE / "cost.py"), *command]
    process = subprocess.run(starter, stdout=subprocess.PIPE, text=True, env=environment)
    output, _, cost = process.stdout.rstrip("\n").rpartition("\n")
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:6])}: exit {process.returncode}")
    return output, Cost(*json.loads(cost))


def accuracy(logs: Path, peers: dict[str, Path]) -> dict[str, Any]:
    """Per tool: how many healthy logs it calls critical, how many broken ones it does not, and what that costs."""
    labels = {m["name"]: m["class"] for m in json.loads((logs / "manifest.json").read_text())}
    said, cost = run([*OURS, str(logs)])
    verdicts: dict[str, set[str]] = {name: set() for name in labels}
    for report in json.loads(said)["runs"]:
        verdicts[Path(report["path"]).relative_to(logs).parts[0]].add(report["verdict"])
    found = {"collapsewatch": tally(labels, {n: bool(v & CRITICAL) for n, v in verdicts.items()}, cost)}
    right = [n for n, label in labels.items() if label == "other" or EXPECTED.get(label, label) in verdicts[n]]
    found["collapsewatch"]["right"] = len(right)
    with tempfile.TemporaryDirectory() as folder:
        files = exported(logs, Path(folder))
        for name, path in peers.items():
            said, cost = run([sys.executable, str(HERE / "peer.py"), name, *files], path)
            critical = dict.fromkeys(labels, False)
            for file, judged in json.loads(said).items():
                critical[files[file]] |= judged
            found[name] = tally(labels, critical, cost)
    return found


def exported(logs: Path, folder: Path) -> dict[str, str]:
    """Our reading of each log as JSON lines: the files, with the names of their logs."""
    files: dict[str, str] = {}
    for found in runs(logs):
        if isinstance(found, Imported):
            path = folder / f"{len(files)}.jsonl"
            rows = ({"step": record.step, **record.metrics} for record in found.records)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[str(path)] = found.path.relative_to(logs).parts[0]
    return files


def tally(labels: dict[str, str], critical: dict[str, bool], cost: Cost) -> dict[str, Any]:
    healthy = [name for name, label in labels.items() if label == "healthy"]
    broken = [name for name, label in labels.items() if label not in ("healthy", "degraded", "other")]
    return {
        "healthy": len(healthy),
        "critical_on_healthy": sum(critical[name] for name in healthy),
        "broken": len(broken),
        "missed": sum(not critical[name] for name in broken),
        **cost._asdict(),
    }


def speed(size: int, rounds: int, peers: dict[str, Path]) -> dict[str, Any]:
    """Seconds for a console of `size` bytes and for a quarter of it, alternating with the peers; files are deleted."""
    with tempfile.TemporaryDirectory() as folder:
        whole, part, dense = (Path(folder) / f"{name}.log" for name in ("whole", "part", "dense"))
        steps = verl_log.write(whole, size, NOISE)
        verl_log.write(part, size // 4, NOISE)
        verl_log.write(dense, size // 10, 0)
        jsonl = Path(folder) / "verl.jsonl"
        chance = random.Random(0)
        with jsonl.open("w") as file:
            for step in range(1, steps + 1):
                pairs = (p.rpartition(":") for p in verl_log.step_line(step, steps, chance).split(" - ")[1:])
                data = {
                    n: float(v.removeprefix("np.float64(").removeprefix("np.int32(").rstrip(")")) for n, _, v in pairs
                }
                file.write(json.dumps({"step": step, "data": data}) + "\n")
        commands = {
            "collapsewatch": ([*OURS, str(whole)], whole, None),
            "wc -l": (["wc", "-l", str(whole)], whole, None),
        }
        commands["collapsewatch, a quarter of it"] = ([*OURS, str(part)], part, None)
        commands["collapsewatch, step lines alone"] = ([*OURS, str(dense)], dense, None)
        if "rldoctor" in peers:
            commands["rl-doctor, JSON lines"] = (
                [sys.executable, str(HERE / "peer.py"), "rldoctor", str(jsonl)], jsonl, peers["rldoctor"],
            )  # fmt: skip
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, (command, _, path) in commands.items():
                costs[name].append(run(command, path)[1])
        return {"steps": steps} | {
            name: {
                "mb": commands[name][1].stat().st_size / 1e6,
                "seconds": [round(c.seconds, 2) for c in own],
                "cpu_seconds": [round(c.cpu_seconds, 2) for c in own],
                "peak_mb": round(max(c.peak_mb for c in own), 1),
            }
            for name, own in costs.items()
        }


def report(result: dict[str, Any]) -> None:
    if "accuracy" in result:
        print("| tool | critical on healthy | missed of broken | seconds | peak MB |\n|---|---|---|---|---|")
        for name, row in result["accuracy"].items():
            print(
                f"| {name} | {row['critical_on_healthy']} of {row['healthy']} | {row['missed']} of {row['broken']}"
                f" | {row['seconds']:.1f} | {row['peak_mb']:.0f} |"
            )
        print(f"\nour verdict is the label's: {result['accuracy']['collapsewatch']['right']} of 25\n")
    print("| what | MB | seconds (min-max) | CPU seconds | MB/s | peak MB |\n|---|---|---|---|---|---|")
    for name, row in result["speed"].items():
        if name != "steps":
            seconds = statistics.median(row["seconds"])
            print(
                f"| {name} | {row['mb']:.0f} | {seconds:.2f} ({min(row['seconds']):.2f}-{max(row['seconds']):.2f})"
                f" | {statistics.median(row['cpu_seconds']):.2f} | {row['mb'] / seconds:.0f} | {row['peak_mb']:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 MB once instead of 1 GB three times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peers", type=Path, help="folder with rldoctor/ and rlwatch/")
    parser.add_argument("--logs", type=Path, default=HERE.parents[2] / "shared" / "data" / "logs")
    options = parser.parse_args()
    peers = {n: options.peers / n for n in ("rldoctor", "rlwatch") if options.peers and (options.peers / n).is_dir()}
    result: dict[str, Any] = {}
    if (options.logs / "manifest.json").is_file():
        result["accuracy"] = accuracy(options.logs.resolve(), peers)
    size, rounds = (QUICK_BYTES, 1) if options.quick else (BYTES, 3)
    result["speed"] = speed(size, rounds, peers)
    if options.json:
        print(json.dumps(result))
        return
    report(result)
    ours = result["speed"]["collapsewatch"]
    seconds = statistics.median(ours["seconds"])
    print(
        f"\nanalyze: {ours['mb']:.0f} MB of verl console in {seconds:.1f} s and {ours['peak_mb']:.0f} MB"
        f" (goal for 1 GB: {GOAL_S} s, {GOAL_MB} MB)"
    )


if __name__ == "__main__":
    main()
