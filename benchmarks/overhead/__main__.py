"""What watching costs: the same training with everything switched on and with no callback at all, step by step.

Two processes train the same seed, one of them watched. They take turns, a round each: while one trains, the other is
stopped (SIGSTOP), background threads and all. Both play the same rollouts and end with the same losses, or this fails;
on a card, whose kernels add up in any order, it says how far apart the losses are. Overhead is what a watched round
takes more than its twin, by the clock and in CPU time; a round is as many steps as lie between two scorings of the
fixed dialogues. `inline` is the same by accounting: the time that the training's own thread spends in our code, by
stage.

Two models: the tiny one as `collapsewatch demo` trains it; and random weights under the head of Qwen2.5-1.5B
(151,936 x 1,536), which costs what it costs, with few layers, so that it runs on two CPU cores. There the scoring
of fixed dialogues is off: beside so few training tokens it would say nothing of a real step.

    python benchmarks/overhead [--quick] [--json] [--only tiny|head] [--rounds N]
        [--layers N] [--rollouts N] [--tokens N] [--bf16]     # of the second model
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from collapsewatch.trainer.config import TrainConfig, from_mapping
from collapsewatch.trainer.train import prepare

SKIPPED = (
    1  # steps before the first round: caches fill, the self-check reads the whole head, optimizers get their state
)
ALTERNATE = "react"
GOALS = {"tiny": 0.05, "head": 0.01}


class Arm:
    """A training in a process of its own, stopped but for its steps."""

    def __init__(self, arm: str, setup: dict[str, Any]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("arm.py")), arm, json.dumps(setup)]
        env = {"HF_HUB_OFFLINE": "1", **os.environ}
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._told()
        self._process.send_signal(signal.SIGSTOP)

    def steps(self, count: int) -> list[dict[str, Any]]:
        """Lets it take so many steps; what each took."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        taken = []
        for _ in range(count):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            taken.append(self._told())
        self._process.send_signal(signal.SIGSTOP)
        return taken

    def end(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        if self._process.wait() != 0:
            raise SystemExit("overhead: a training failed; its error stands above")

    def kill(self) -> None:
        self._process.kill()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("overhead: a training failed; its error stands above")
        told: dict[str, Any] = json.loads(line)
        return told


def compare(setup: dict[str, Any], rounds: int, length: int) -> dict[str, Any]:
    """Overhead of `rounds` rounds of `length` steps."""
    steps = SKIPPED + rounds * length
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        knobs = {**setup["knobs"], "steps": steps, "logdir": folder}
        arms = {}
        for name in ("watched", "unwatched"):
            arms[name] = Arm(name, {**setup, "knobs": knobs})
            stack.callback(arms[name].kill)
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
        for index, count in enumerate([SKIPPED, *[length] * rounds]):
            for name in list(arms)[:: 1 if index % 2 else -1]:
                taken[name] += arms[name].steps(count)
        for arm in arms.values():
            arm.end()
    watched, unwatched = taken["watched"], taken["unwatched"]
    apart = max(abs(a - b) for a, b in zip(watched[-1]["losses"], unwatched[-1]["losses"], strict=True))
    if apart and not torch.cuda.is_available():
        raise SystemExit("overhead: got two courses of the loss, expected the weights of the unwatched run")
    in_rounds = [slice(start, start + length) for start in range(SKIPPED, steps, length)]
    counted = watched[SKIPPED:]
    stages = {
        name: statistics.mean(t["stages"].get(name, 0.0) for t in counted) for t in counted for name in t["stages"]
    }
    spent = [sum(sum(t["stages"].values()) for t in watched[own]) for own in in_rounds]
    return {
        "rounds": rounds,
        "steps": length,
        "step_s": spread((total(unwatched[own], "wall") / length for own in in_rounds), 4),
        "step_cpu_s": spread((total(unwatched[own], "cpu") / length for own in in_rounds), 4),
        "wall": spread(total(watched[own], "wall") / total(unwatched[own], "wall") - 1 for own in in_rounds),
        "cpu": spread(total(watched[own], "cpu") / total(unwatched[own], "cpu") - 1 for own in in_rounds),
        "inline": spread(s / total(unwatched[own], "wall") for s, own in zip(spent, in_rounds, strict=True)),
        "stages_ms": {name: round(1e3 * s, 3) for name, s in sorted(stages.items(), key=lambda item: -item[1])},
        "hook_bytes": watched[-1]["hook_bytes"],
        "moved_bytes": watched[-1]["moved_bytes"],
        "losses": len(watched[-1]["losses"]),
        "apart": apart,
    }


def total(steps: Iterable[dict[str, Any]], clock: str) -> float:
    return sum(step[clock] for step in steps)


def spread(values: Iterable[float], digits: int = 5) -> dict[str, float]:
    ordered = sorted(values)
    rounded = (round(value, digits) for value in (statistics.median(ordered), ordered[0], ordered[-1]))
    return dict(zip(("median", "min", "max"), rounded, strict=True))


def setups(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is trained: the knobs of the built-in trainer, and how many layers stand under the large head."""
    usual = {"learning_rate": 2e-4, "warmup_steps": 10, "bf16": options.bf16}
    tiny = usual | {"alternate_format": ALTERNATE, "bf16": False}
    head = usual | {"model": "head", "prompts": 1, "probe_every": 0}
    if options.quick:
        tiny |= {"prompts": 2, "rollouts": 4, "warm_start": 60}
        head |= {"rollouts": 2, "max_turn_tokens": 8}
        layers = 1
    else:
        head |= {"rollouts": options.rollouts, "max_turn_tokens": options.tokens}
        layers = options.layers
    return {"tiny": {"knobs": tiny}, "head": {"knobs": head, "layers": layers}}


def report(name: str, found: dict[str, Any]) -> None:
    step = found["step_s"]["median"]
    losses = f"losses at most {found['apart']:.2g} apart" if found["apart"] else "the same losses in both"
    print(f"{name}: {found['rounds']} rounds of {found['steps']} steps of {step:.3f} s unwatched, {losses}")
    for clock in ("wall", "cpu", "inline"):
        print(f"  {clock:8} {percent(found[clock])}")
    for stage, ms in found["stages_ms"].items():
        print(f"    {stage:32} {ms:9.3f} ms  {ms / step / 10:7.3f} % of a step")
    print(f"  in the hooks at most {found['hook_bytes'] / 1e6:,.3f} MB at once")
    print(f"  from the card to the host {found['moved_bytes'] / 1e6:,.3f} MB in the first step")


def percent(part: dict[str, float]) -> str:
    return f"{100 * part['median']:.2f} % ({100 * part['min']:.2f} to {100 * part['max']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rollouts, tokens, steps and rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=GOALS, help="one of the two models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("overhead: stopped"))  # a stopped child must not outlive this
    result: dict[str, Any] = {}
    for name, setup in setups(options).items():
        if options.only in (None, name):
            rounds = 2 if options.quick else options.rounds
            length = TrainConfig.probe_every if name == "tiny" else 1 + (not options.quick)
            if name == "tiny":
                prepare(from_mapping({**setup["knobs"], "logdir": tempfile.gettempdir()}, "overhead"))
            result[name] = compare(setup, rounds, length)
            if not options.json:
                report(name, result[name])
    if options.json:
        print(json.dumps(result))
        return
    told = []
    for name, found in result.items():
        goal = f"goal {100 * GOALS[name]:.0f} %"
        told.append(f"{name} {percent(found['wall'])} by the clock, {percent(found['inline'])} inline, {goal}")
    print(f"overhead of a step: {'; '.join(told)}")


if __name__ == "__main__":
    main()
