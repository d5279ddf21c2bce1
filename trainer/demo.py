"""The main job: one seed trained twice, RL alone and with triggered supervision, watched and compared.

Each run is a process of its own, writing its own folder; this one only reads them, like any dashboard would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.server import serve_in_thread
from collapsewatch.queries import Run, RunError, open_run
from collapsewatch.report import analyze
from collapsewatch.summary import print_summary

from .config import ConfigError, TrainConfig, load_config
from .progress import PLAIN_EVERY, bars, line, warm_start

CONFIG = Path(__file__).with_name("demo.toml")
ARMS = {"rl-alone": "none", "supervised": "erroneous"}
"""The two runs: name of the run, and its intervention."""
POLL_SECONDS = 0.5


class DemoError(ValueError):
    """A run of the demo failed; the message says which and shows its last line."""


def run_demo(seed: int, out: Path, dashboard: bool, port: int, console: Console) -> None:
    """Train both arms, show them while they train, and end with `analyze` on both.

    Raises:
        ConfigError: `out` cannot be written.
        DemoError: a run ended in an error.
        KeyboardInterrupt: passed on, after both runs were closed as `interrupted`.
    """
    logdir = _fresh(out, f"demo-seed{seed}")
    configs = [load_config(CONFIG, _changes(name, seed, logdir)) for name in ARMS]
    with _page(logdir, dashboard, port, console):
        _make(logdir, out)
        warm_start(configs[0], console)
        with _training(configs, logdir) as processes:
            _watch(configs, processes, logdir, console)
        _check(processes, logdir)
        print_summary(analyze(logdir), console)
        console.print(f"\nkept in {logdir}   again: collapsewatch analyze {logdir}", soft_wrap=True)
        if dashboard and console.is_terminal and sys.stdin.isatty() and not os.environ.get("CI"):
            console.input("the page stays up; Enter ends it ")


def _changes(name: str, seed: int, logdir: Path) -> tuple[str, ...]:
    return (f"seed={seed}", f"name={name}", f"logdir={logdir}", f"intervention={ARMS[name]}")


def _fresh(out: Path, name: str) -> Path:
    """A folder that no earlier demo has used: nothing recorded is ever overwritten."""
    for number in range(1, 1000):
        folder = out / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
    raise ConfigError(f"--out: got {str(out)!r}, which holds 999 demos of this seed, expected an emptier folder")


def _make(logdir: Path, out: Path) -> None:
    try:
        logdir.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out: got {str(out)!r} ({error.strerror}), expected a folder to write to") from error


@contextmanager
def _page(logdir: Path, wanted: bool, port: int, console: Console) -> Iterator[None]:
    if not wanted:
        yield
        return
    with closing(serve_in_thread(Feed(logdir), port)) as page:
        console.print(f"watch it live: {page.url}")
        yield


@contextmanager
def _training(configs: Sequence[TrainConfig], logdir: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Both runs as processes; whatever ends the block, they end too, and have time to close their runs."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for config in configs:
            path = logdir / f"{config.name}.toml"
            path.write_text(config.to_toml())
            with open(logdir / f"{config.name}.log", "wb") as log:
                command = [sys.executable, "-m", "collapsewatch", "train", str(path)]
                processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
                )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # as Ctrl-C does, but never ignored, as a shell's background job ignores that
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _watch(
    configs: Sequence[TrainConfig], processes: Sequence[subprocess.Popen[bytes]], logdir: Path, console: Console
) -> None:
    """Show both runs until their processes end."""
    views = [_View(config, logdir / config.name, console) for config in configs]
    with bars(console) as progress:
        for view in views:
            view.start(progress)
        # A run that fails ends the demo: `_training` then ends the other one.
        while any(process.poll() is None for process in processes) and not any(p.returncode for p in processes):
            time.sleep(POLL_SECONDS)
            for view in views:
                view.refresh(progress)
        for view in views:
            view.refresh(progress)
            view.close()


class _View:
    """One run as the terminal shows it: what is new since the last look, read from its store."""

    def __init__(self, config: TrainConfig, run_dir: Path, console: Console) -> None:
        self._config, self._run_dir, self._console = config, run_dir, console
        self._run: Run | None = None
        self._seen: dict[str, int] = {}
        self._step, self._said = 0, 0
        self._metrics = {"reward": float("nan"), "parse_rate": float("nan")}
        self._alarm = "ok"

    def start(self, progress: Progress) -> None:
        self._task = progress.add_task(self._config.name, total=self._config.steps, state="")

    def refresh(self, progress: Progress) -> None:
        try:
            self._run = self._run or open_run(self._run_dir)
            metrics, alarms, applied = (self._new(table) for table in ("metrics", "alarms", "interventions"))
        except RunError:  # not begun yet, or just being written
            return
        for step, name, value in zip(metrics["step"], metrics["metric"], metrics["value"], strict=True):
            if name in self._metrics:
                self._metrics[name], self._step = value, max(self._step, step)
        self._say_alarms(alarms)
        for step, name, status in zip(applied["step"], applied["name"], applied["status"], strict=True):
            if status != "effect":
                self._say(step, f"{name} {status}")
        state = line(self._metrics["reward"], self._metrics["parse_rate"], self._alarm)
        progress.update(self._task, completed=self._step, state=state)
        if not self._console.is_terminal and self._step // PLAIN_EVERY > self._said // PLAIN_EVERY:
            self._say(self._step, state)
            self._said = self._step

    def _say_alarms(self, alarms: dict[str, list[Any]]) -> None:
        columns = (alarms[name] for name in ("step", "tier", "kind", "onset_step"))
        for step, tier, kind, onset in zip(*columns, strict=True):
            if tier == "watch":
                continue
            self._alarm = "ok" if tier in ("cleared", "rebaselined") else f"{kind} since step {onset}"
            if tier != "hold":
                self._say(step, f"{tier}: {kind} since step {onset}")

    def _say(self, step: int, text: str) -> None:
        self._console.print(f"{self._config.name:>12} step {step:>3}  {text}", markup=False, highlight=False)

    def _new(self, table: str) -> dict[str, list[Any]]:
        assert self._run is not None
        rows, self._seen[table] = self._run.since(table, self._seen.get(table, 0))
        return rows

    def close(self) -> None:
        if self._run is not None:
            self._run.close()


def _check(processes: Sequence[subprocess.Popen[bytes]], logdir: Path) -> None:
    for name, process in zip(ARMS, processes, strict=True):
        if process.returncode != 0:
            log = logdir / f"{name}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise DemoError(f"{name}: got exit code {process.returncode} ({last[0]}), expected 0; see {log}")
