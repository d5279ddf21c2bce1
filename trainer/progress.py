"""What a training run shows while it runs: one line with a bar, or plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from collapsewatch.records import Alarm, Applied, StepRecord, Tier

from .config import TrainConfig
from .train import prepare, train

PLAIN_EVERY = 20
"""Steps between two lines where there is no terminal to draw a bar on."""


def bars(console: Console) -> Progress:
    """Columns of name, bar, step, and a free text `state`."""
    columns = (
        TextColumn("{task.description}", justify="right"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}", markup=False),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def warm_start(config: TrainConfig, console: Console, resume: bool = False) -> None:
    """Build the starting model, with a bar, unless it is cached."""
    with bars(console) as progress:
        task = progress.add_task("warm start", total=config.warm_start, state="")
        prepare(config, lambda done, total: progress.update(task, completed=done, total=total), resume)
        progress.update(task, completed=config.warm_start, state="ready")


def line(reward: float, parse_rate: float, state: str) -> str:
    """Reward, parse rate and alarm state in few words."""
    return f"reward {reward:4.2f}  parse {parse_rate:4.0%}  {state}"


def run_with_progress(config: TrainConfig, console: Console, resume: bool = False) -> Path:
    """Train, or go on with a run that was cut short, showing progress; returns the run's folder."""
    warm_start(config, console, resume)
    with bars(console) as progress:
        task = progress.add_task(config.name, total=config.steps, state="")
        standing = ""

        def show(record: StepRecord, alarms: Sequence[Alarm], applied: Sequence[Applied]) -> None:
            nonlocal standing
            for alarm in alarms:
                if alarm.tier is Tier.WATCH:
                    continue
                standing = "" if alarm.tier in (Tier.CLEARED, Tier.REBASELINED) else f"{alarm.kind} {alarm.tier}"
                console.print(f"step {record.step}: {alarm.tier} {alarm.kind}, since step {alarm.onset_step}")
            for row in applied:
                console.print(f"step {record.step}: {row.name} {row.status}")
            parse_rate = record.metrics.get("parse_rate", float("nan"))
            state = line(record.metrics["reward"], parse_rate, standing or "ok")
            progress.update(task, completed=record.step, state=state)
            if not console.is_terminal and record.step % PLAIN_EVERY == 0:
                console.print(f"{config.name} {record.step}/{config.steps}  {state}")

        run_dir = train(config, show, resume)
    console.print(f"{run_dir}: finished")
    return run_dir
