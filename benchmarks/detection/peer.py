"""One peer over packed series, in a process of its own: first alarm (0: none) of each run at each of its settings.

    python peer.py NAME SERIES.npz [SETTING ...]

Where a peer has no single threshold, what scales its rules together stands for one.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

logging.disable(logging.CRITICAL)
Rows = dict[str, np.ndarray]
Watch = Callable[[Rows], int]  # the index of the first alarm's row, or -1


def runs(packed: Any) -> Iterator[Rows]:
    starts, names = packed["starts"], ("steps", "scalar", "key", "excess")
    whole = {name: packed[name] for name in names}
    for a, b in pairwise(starts):
        yield {name: whole[name][a:b] for name in names}


def _streaming(make: Callable[[], Any], which: str, rows: Rows) -> int:
    """The first row at which one of the detectors, one per series, sees a change; upwards where up is bad."""
    values = np.maximum(rows[which], 0.0) if which == "excess" else rows[which]
    first = len(values)
    for column in values.T.tolist():
        detector, before = make(), 0.0
        for i, value in enumerate(column[:first]):
            before = detector.estimation if hasattr(detector, "estimation") else 0.0
            detector.update(value)
            if detector.drift_detected and (which == "scalar" or getattr(detector, "estimation", 1.0) > before):
                first = i
                break
    return first if first < len(values) else -1


def adwin(which: str, delta: float | None) -> Watch:
    drift = importlib.import_module("river.drift")
    # Its clock looks every 32 values only; below its default it is told to look at each.
    make = (lambda: drift.ADWIN()) if delta is None else (lambda: drift.ADWIN(delta=delta, clock=1))
    return partial(_streaming, make, which)


def page_hinkley(which: str, threshold: float | None) -> Watch:
    drift = importlib.import_module("river.drift")
    mode = "both" if which == "scalar" else "up"
    return partial(_streaming, lambda: drift.PageHinkley(mode=mode, threshold=threshold or 50.0), which)


def rlwatch(which: str, scale: float | None) -> Watch:
    """Its detectors as its monitor runs them; every rule's multiplier times `scale`."""
    config = importlib.import_module("rlwatch.config")
    suite_of = importlib.import_module("rlwatch.detectors").DetectorSuite
    k = scale or 1.0

    def watch(rows: Rows) -> int:
        own = config.RLWatchConfig()
        own.entropy_collapse.threshold /= k
        own.kl_explosion.sigma_multiplier *= k
        own.reward_hacking.variance_multiplier *= k
        own.gradient_norm_spike.sigma_multiplier *= k
        own.reward_mean_drift.min_drift_magnitude *= k
        suite = suite_of(own)
        for i, (step, row) in enumerate(zip(rows["steps"].tolist(), rows["scalar"].tolist(), strict=True)):
            names = ("reward_mean", "reward_std", "entropy", "kl_divergence", "grad_norm", "loss")
            if suite.check_step(step, **dict(zip(names, row[:6], strict=True))):
                return i
        return -1

    return watch


def rldoctor(which: str, findings: float | None) -> Watch:
    """Its live monitor; an alarm is one finding at its default, and `findings` critical ones beyond it."""
    live = importlib.import_module("rl_doctor.live")
    severity = importlib.import_module("rl_doctor").Severity
    names = ("reward", "reward_std", "entropy", "kl", "grad_norm", "loss", "completions/mean_length")
    names += ("completions/clipped_ratio",)

    def watch(rows: Rows) -> int:
        level = severity.WARNING if findings is None else severity.CRITICAL
        monitor, said = live.LiveMonitor(alert_at=level, on_finding=lambda _: None), 0
        for i, (step, row) in enumerate(zip(rows["steps"].tolist(), rows["scalar"].tolist(), strict=True)):
            said += len(monitor.log(dict(zip(names, row, strict=True)), step=step))
            if said >= (findings or 1):
                return i
        return -1

    return watch


def ruptures(which: str, penalty: float | None) -> Watch:
    """Offline: the first change point of PELT over the whole run, all series standardised together."""
    library = importlib.import_module("ruptures")

    def watch(rows: Rows) -> int:
        values = np.maximum(rows[which], 0.0) if which == "excess" else rows[which]
        noise = np.abs(np.diff(values, axis=0)).mean(axis=0) if len(values) > 1 else 1.0
        scaled = values / np.maximum(noise, 1e-2)
        found = library.Pelt(model="l2", min_size=5, jump=5).fit(scaled).predict(pen=penalty or 40.0)
        return int(found[0]) if len(found) > 1 else -1

    return watch


Make = Callable[[str, float | None], Watch]
PEERS: dict[str, tuple[Make, tuple[str, ...], tuple[float, ...]]] = {
    "adwin": (adwin, ("scalar", "key", "excess"), (1e-3, 1e-6, 1e-9, 1e-18)),
    "page_hinkley": (page_hinkley, ("scalar", "key", "excess"), (5.0, 10.0, 20.0, 100.0, 500.0)),
    "rlwatch": (rlwatch, ("scalar",), (4.0, 32.0, 100.0)),
    "rldoctor": (rldoctor, ("scalar",), (1.0, 2.0)),
    "ruptures": (ruptures, ("key", "excess"), (300.0, 3000.0)),
}
"""What is run, on which series, and its settings from lax to strict beside its default."""


def main(name: str, path: str, wanted: list[str]) -> None:
    make, series, settings = PEERS[name]
    told: dict[str, list[int]] = {}
    packed = np.load(path)
    every = list(runs(packed))
    for which in series:
        for setting in (None, *settings):
            label = f"{which} {'default' if setting is None else format(setting, 'g')}"
            if not wanted or label in wanted:
                watch = make(which, setting)
                at = [watch(rows) for rows in every]
                told[label] = [int(r["steps"][i]) if i >= 0 else 0 for r, i in zip(every, at, strict=True)]
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
