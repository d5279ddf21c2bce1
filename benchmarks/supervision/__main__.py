r"""Every supervisory signal under every schedule on the tiny model, beside RL alone: who lives, and at what price.

Runs that stand finished in `--runs` are not trained again and those that were cut short go on from their last
checkpoint, so that the command may be interrupted at any time. `--write` puts the tables into a Markdown file.

    python benchmarks/supervision [--quick] [--json] [--runs DIR] [--seeds N] [--jobs N] [--only TEXT] [--write FILE]
                                  [--figures FILE]
        [--model FILE [--environment NAME] [--steps N] [--bf16]]    # RL alone and triggered, from a supervised start
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course import Row, finish, finished, row, run_name
from drawn import page
from grid import COMMON, RATES, SEEDS, STEPS, WINDOW, Cell, cells
from scale import SIZES
from scale import cells as cells_of
from scale import start as start_of
from verdicts import claims, kept_alive, summary, table

QUICK = (Cell("none", "", RATES[-1]), Cell("erroneous", "interleaved", RATES[-1]))
SHORT: dict[str, Any] = {"steps": 6, "warm_start": 30, "prompts": 2, "eval_every": 6, "eval_tasks": 4, "probe_every": 0}
SHORT["schedule_knobs"] = {"segments": [2, 2, 2]}
BEGIN, END = "<!-- supervision -->", "<!-- /supervision -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two runs of a few steps: that all of it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=Path, default=Path("logs") / "supervision", help="folder that holds the runs")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds of each cell")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs trained at a time")
    parser.add_argument("--only", default="", help="cells whose names hold this, or one of these with commas")
    parser.add_argument("--no-training", action="store_true", help="judge the runs that stand there")
    parser.add_argument("--write", type=Path, help="put the tables into this file, between its marks or at its end")
    parser.add_argument("--figures", type=Path, help="draw the first seed's runs into this HTML file")
    parser.add_argument("--model", type=Path, help="a model folder or .gguf file in place of the tiny model")
    parser.add_argument("--environment", choices=SIZES, default="chain", help="what --model is trained on")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run of --model")
    parser.add_argument("--bf16", action="store_true", help="train --model in bfloat16 autocast")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            rows = made(QUICK, (0,), Path(folder), 1, SHORT)
    else:
        plan = cells()
        if options.model:
            begun = start_of(options.model, options.environment, options.runs, options.bf16)
            plan = cells_of(begun, options.environment, options.steps, options.bf16)
        wanted = [c for c in plan if any(part in c.name for part in options.only.split(","))]
        seeds = tuple(range(options.seeds))
        rows = made(wanted, seeds, options.runs, 0 if options.no_training else options.jobs, {})
    if options.write:
        write(options.write, rows)
    if options.figures and not options.quick:
        options.figures.write_text(page([r for r in rows if r.seed == SEEDS[0]], options.runs))
    if options.json:
        told = {"runs": [asdict(r) for r in rows], "cells": summary(rows), "kept_alive": kept_alive(rows)}
        print(json.dumps({**told, "claims": [asdict(claim) for claim in claims(rows)]}))
        return
    print(report(rows))
    print(f"\n{figure(rows)}")


def made(
    wanted: Sequence[Cell], seeds: Sequence[int], logdir: Path, jobs: int, changes: Mapping[str, Any]
) -> list[Row]:
    """Rows of all runs, each trained first unless it stands finished; with no jobs, of those that stand."""
    logdir.mkdir(parents=True, exist_ok=True)
    plan = [(cell, seed) for seed in seeds for cell in wanted]  # a whole grid of one seed stands first
    missing = [(cell, seed) for cell, seed in plan if not finished(logdir / run_name(cell.name, seed))] if jobs else []
    # Runs of one seed share a warm start, which the first of them builds: the others wait for it.
    first = {seed: (cell, seed) for cell, seed in reversed(missing)}
    for batch in (list(first.values()), [pair for pair in missing if pair not in first.values()]):
        with ProcessPoolExecutor(max(1, jobs), multiprocessing.get_context("spawn")) as pool:
            running = {
                pool.submit(finish, cell, seed, logdir, dict(changes)): run_name(cell.name, seed)
                for cell, seed in batch
            }
            for done in as_completed(running):
                print(f"{running[done]}: {done.result():.0f} s", file=sys.stderr, flush=True)
    return [row(cell, seed, logdir) for cell, seed in plan if finished(logdir / run_name(cell.name, seed))]


def report(rows: Sequence[Row]) -> str:
    """All tables, in Markdown."""
    kept = [
        f"| {k['cell']} | {k['lost_alone']} | {k['alive']['mean']:.2f} ({k['alive']['low']:.2f} to"
        f" {k['alive']['high']:.2f}) | {k['supervised']:.1f} |"
        for k in kept_alive(rows)
    ]
    parts = [
        table(rows),
        "Of the seeds that RL alone loses at the same rate:",
        "\n".join(["| cell | lost alone | alive | supervised steps |", "|---|---|---|---|", *kept]),
        "Claims, as differences paired by seed and rate; open where the interval holds zero:",
        "\n".join(["| claim | difference | verdict |", "|---|---|---|", *map(str, claims(rows))]),
    ]
    return "\n\n".join(parts)


def figure(rows: Sequence[Row]) -> str:
    """The one line that sums it up: at all rates together, so that no cell is picked for it."""
    lost = sum(row.arm == "none" and not row.alive for row in rows)
    told = [f"supervision: {len(rows)} runs; RL alone loses {lost}"]
    kept = kept_alive(rows)
    for schedule in ("triggered", "interleaved"):
        own = [cell for cell in kept if cell["cell"].startswith(f"erroneous-{schedule}-")]
        if of := sum(cell["lost_alone"] for cell in own):
            alive = sum(cell["lost_alone"] * cell["alive"]["mean"] for cell in own)
            steps = sum(cell["lost_alone"] * cell["supervised"] for cell in own) / of
            told.append(f"erroneous, {schedule}, keeps {alive:.0f} of {of} with {steps:.1f} supervised steps")
    return "; ".join(told)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Put the tables between the marks in a Markdown file, or with marks at its end."""
    told = (
        f"# Supervision on the tiny model\n\n`python benchmarks/supervision --write {path}`: {len(rows)} runs of"
        f" {STEPS} steps of {COMMON['prompts']} prompts with {COMMON['rollouts']} rollouts on `chain`, mean over seeds"
        f" (95 % bootstrap interval). *Final*, *parse rate* and *alive* are of the last {WINDOW} steps, a sixth of the"
        " run, as 50 are of the paper's 300; alive is a final reward of at least 80 % of the best such window. OOD"
        " columns are rewards on held-out tasks, the mean of the last two evaluations less the one before training.\n\n"
        + report(rows)
    )
    text = path.read_text() if path.exists() else ""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{told}\n{END}\n{after.lstrip()}".lstrip())


if __name__ == "__main__":
    main()
