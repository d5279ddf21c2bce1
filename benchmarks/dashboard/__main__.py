r"""How soon a run of 10,000,000 control-token rows is on the dashboard, and what following it costs, beside peers.

A trainer goes on with the run, a step a second, while Chromium looks. *First paint* is from the address to a drawn
figure, in a fresh browser: `cold`, of a server that has just been started, and `warm`, of one that has read the run;
*still* is to the words and lines that the server draws. `bare` is a page of Dash with one figure of three points and
nothing else.
*Tick* is the server's time for, and the bytes of, one request of a page that follows. *Age* is what passes
between a step's logging and its number on the screen.

The peers get ten of the run's metrics at as many steps, no control token. They stand in an environment of their own:

    python -m venv PEERS && PEERS/bin/pip install trackio tensorboard tensorboardX
    python benchmarks/dashboard [--quick] [--json] [--peers PEERS/bin/python] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from history import lay_down
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
ROWS, QUICK_ROWS = 10_000_000, 200_000
PAGES = ("overview", "control", "compare")
STILL = ".cw-picture path, .js-plotly-plot .main-svg"  # a run that is not read in time has no still lines
DRAWN = {
    "collapsewatch": "main .js-plotly-plot .main-svg",
    "bare": ".js-plotly-plot .main-svg",
    "tensorboard": "line-chart-axis text",
    "trackio": "canvas",
}


class Server:
    """One dashboard process over a folder; `lines` are what it has told of its requests."""

    def __init__(self, folder: Path, script: str = "served.py") -> None:
        self.told = folder / f"{script}.jsonl"
        with self.told.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / script), str(folder)], stdout=out, stderr=subprocess.DEVNULL
            )
        self.url = f"http://127.0.0.1:{until(lambda: self.lines()[0]['port'])}/"

    def lines(self) -> list[dict[str, Any]]:
        """What it has told so far."""
        return [json.loads(line) for line in self.told.read_text().splitlines()]

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


def until(answer: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What `answer` gives as soon as it gives something without an error."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return answer()
        except (LookupError, OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def first_paint(browser: Browser, url: str, *shown: str) -> list[float]:
    """Seconds from an address to each of what is shown, one after the other, in a browser that has been nowhere."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(url, wait_until="commit")
    taken = []
    for selector in shown:
        page.wait_for_selector(selector, timeout=120_000)
        taken.append(time.perf_counter() - begun)
    context.close()
    return taken


def followed(browser: Browser, server: Server, folder: Path, last: int, seconds: int) -> dict[str, Any]:
    """Ticks of each page and the age of what it shows, while a trainer goes on."""
    ages: list[float] = []
    ticks: dict[str, Any] = {}
    for name in PAGES:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(server.url + name)
        page.wait_for_selector(DRAWN["collapsewatch"])
        trainer = subprocess.Popen(
            [sys.executable, str(HERE / "history.py"), str(folder / "run"), str(last), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        before = len(server.lines())
        seen: dict[int, float] = {}
        while trainer.poll() is None:
            if name == "overview" and (step := _step(page)):
                seen.setdefault(step, time.time())
            page.wait_for_timeout(50)
        page.wait_for_timeout(2000)
        page.close()
        logged = {int(step): float(at) for step, at in (line.split() for line in trainer.stdout or ())}
        ages += [seen[step] - at for step, at in logged.items() if step in seen]
        last = max(logged)
        asked = [line for line in server.lines()[before:] if line["changed"] == ["tick.n_intervals"]]
        ticks[name] = {key: [line[key] for line in asked] for key in ("ms", "bytes")}
    return {"ages": ages, "ticks": ticks, "last": last}


def _step(page: Any) -> int | None:
    text = page.evaluate("document.querySelector('.cw-facts strong')?.innerText") or ""
    return int(text.split()[0]) if text[:1].isdigit() else None


@contextmanager
def peer(python: str, name: str, folder: Path, steps: int) -> Iterator[str]:
    """A peer's page over as many steps, served."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, str(HERE / "peer.py"), name, str(folder), str(steps), str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(command, env=dict(os.environ, HF_HUB_OFFLINE="1"), **quiet)  # type: ignore[call-overload]
    url = f"http://127.0.0.1:{port}/"
    try:
        until(lambda: urllib.request.urlopen(url, timeout=5).read(1), 1800)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, minimum and maximum."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def measure(browser: Browser, rows: int, rounds: int, seconds: int, python: str | None, folder: Path) -> dict[str, Any]:
    """Everything, in one run."""
    last = lay_down(folder / "run", rows)
    paint: dict[str, list[float]] = {}
    for name in PAGES:
        for _ in range(rounds):
            server = Server(folder)
            shown = [STILL, DRAWN["collapsewatch"]] if name == "overview" else [DRAWN["collapsewatch"]]
            *pictured, drawn = first_paint(browser, server.url + name, *shown)
            server.close()
            paint.setdefault(f"{name}, cold", []).append(drawn)
            if pictured:
                paint.setdefault("overview, cold, still", []).append(pictured[0])
    server = Server(folder)
    found = {"rows": rows, "steps": last, "bytes on disk": (folder / "run" / "run.duckdb").stat().st_size}
    found |= followed(browser, server, folder, last, seconds)
    bare = Server(folder, "bare.py")
    urls = {f"{name}, warm": (server.url + name, DRAWN["collapsewatch"]) for name in PAGES}
    urls |= {"overview, warm, still": (server.url + "overview", STILL), "bare": (bare.url, DRAWN["bare"])}
    paint |= alternated(browser, urls, rounds)
    bare.close()
    if python:
        for name in ("tensorboard", "trackio"):
            with peer(python, name, folder / name, last) as url:
                ours = {"overview, warm, beside " + name: urls["overview, warm"], name: (url, DRAWN[name])}
                paint |= alternated(browser, ours, rounds)
    server.close()
    return {**found, "first paint": paint}


def alternated(browser: Browser, urls: dict[str, tuple[str, str]], rounds: int) -> dict[str, list[float]]:
    """First paints of several pages, in turns."""
    paint: dict[str, list[float]] = {name: [] for name in urls}
    for _ in range(rounds):
        for name, (url, drawn) in urls.items():
            paint[name] += first_paint(browser, url, drawn)
    return paint


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, one round, ten seconds a page")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has trackio and tensorboard")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds, seconds = (1, 6) if options.quick else (options.rounds, 40)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        rows = QUICK_ROWS if options.quick else ROWS
        found = measure(browser, rows, rounds, seconds, options.peers, Path(folder))
        browser.close()
    if options.as_json:
        print(json.dumps(found))
        return
    print(f"{found['rows']:,} control rows, {found['steps']:,} steps, {found['bytes on disk'] / 1e6:.0f} MB")
    for name, values in found["first paint"].items():
        print(f"first paint, {name}: {spread(values)} s")
    for name, ticks in found["ticks"].items():
        ms, sent = ticks["ms"], ticks["bytes"]
        server_time = f"{statistics.median(ms):.0f} ms, p95 {p95(ms):.0f}, max {max(ms):.0f}"
        print(f"tick of {name}: {server_time}; {spread(sent, 0)} bytes; {len(ms)} ticks")
    print(f"age of a step on the screen: {spread(found['ages'])} s")
    worst = max(p95(ticks["ms"]) for ticks in found["ticks"].values())
    still, paint = (statistics.median(found["first paint"][f"overview, cold{kind}"]) for kind in (", still", ""))
    age = statistics.median(found["ages"])
    print(f"still {still:.2f} s, drawn {paint:.2f} s, tick p95 {worst:.0f} ms, age {age:.2f} s")


if __name__ == "__main__":
    main()
