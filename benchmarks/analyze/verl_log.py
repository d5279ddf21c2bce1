"""A verl console log of any size: step lines among what Ray, vLLM and a progress bar print, seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

BROKEN_AT = 0.7  # of the steps: from there on no turn ends
_PREFIX = "\x1b[36m(TaskRunner pid=4242)\x1b[0m "
_WORKER = "\x1b[36m(WorkerDict pid=4243)\x1b[0m "
_PARTS = ("mean", "max", "min")
_TIMED = ("gen", "reward", "old_log_prob", "ref", "adv", "update_actor", "update_weights", "step", "stop_profile")
_LOOP = ("generate_sequences", "tool_calls", "compute_score", "num_preempted", "generation", "waiting")
_WORDS = ("the", "agent", "asks", "for", "a", "tool", "and", "reads", "what", "it", "answers", "before", "it", "says")


def lines(steps: int, noise: int, seed: int = 0) -> Iterator[str]:
    """A log of so many steps, each with about `noise` bytes of other output before its line."""
    chance = random.Random(seed)
    samples = [_noise(chance, step) for step in range(20)]
    yield f"{_WORKER}INFO 01-01 00:00:00 [__init__.py:239] Automatically detected platform cuda.\n"
    for step in range(1, steps + 1):
        told = 0
        while told < noise:
            sample = chance.choice(samples)
            told += len(sample)
            yield sample
        yield f"\rTraining Progress: {step / steps:4.0%}|####      | {step}/{steps} [1:23:45<2:34:56, 61.02s/it]"
        yield f"{_PREFIX}{step_line(step, steps, chance)}\n"


def step_line(step: int, steps: int, chance: random.Random) -> str:
    """What verl prints of a step: about a hundred values."""
    broken = step > BROKEN_AT * steps
    score = 0.02 if broken else 0.4 + 0.3 * math.tanh(step / (steps / 4)) + chance.gauss(0, 0.03)
    told: dict[str, object] = {"actor/entropy": 0.4 + chance.gauss(0, 0.02), "perf/mfu/actor_infer": 0.0}
    for name, level in (("pg_clipfrac", 0.01), ("ppo_kl", 1e-3), ("pg_loss", 0.02), ("kl_loss", 0.1), ("loss", 0.03)):
        told[f"actor/{name}"] = f"np.float64({level * (1 + chance.gauss(0, 0.1))})"
    told |= {"actor/grad_norm": f"np.float64({0.3 + chance.random() / 10})", "actor/lr": "np.float64(1e-06)"}
    told |= {"training/global_step": step, "training/epoch": step // 100}
    for name in ("score", "rewards", "advantages", "returns"):
        told |= {f"critic/{name}/{part}": score + chance.gauss(0, 0.001) for part in _PARTS}
    for name in ("response_length", "response_length_non_aborted", "prompt_length"):
        told |= {f"{name}/{part}": 500 + chance.gauss(0, 20) for part in _PARTS}
        told[f"{name}/clip_ratio"] = 0.97 if broken and name != "prompt_length" else chance.random() / 50
    told |= {"response/aborted_ratio": 0.0, "num_turns/min": "np.int32(2)", "num_turns/max": "np.int32(8)"}
    told["num_turns/mean"] = f"np.float64({4 + chance.gauss(0, 0.2)})"
    for name in _LOOP:
        told |= {f"timing_s/agent_loop/{name}/{part}": f"np.float64({chance.random() * 60})" for part in _PARTS}
        told[f"timing_s/agent_loop/slowest/{name}"] = f"np.float64({chance.random() * 60})"
    for name in _TIMED:
        told |= {f"timing_s/{name}": chance.random() * 60, f"timing_per_token_ms/{name}": chance.random()}
    told |= {"perf/total_num_tokens": 83067, "perf/time_per_step": 61.02, "perf/throughput": 455.606894145206}
    return f"step:{step} - " + " - ".join(f"{name}:{value}" for name, value in told.items())


def write(path: Path, size: int, noise: int, seed: int = 0) -> int:
    """Write a log of about `size` bytes; returns its steps."""
    steps = max(10, size // (noise + len(step_line(1, 1, random.Random(seed)))))
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines(steps, noise, seed))
    return steps


def _noise(chance: random.Random, step: int) -> str:
    kind = step % 4
    if kind == 0:  # a rollout that verl prints to look at
        text = " ".join(chance.choices(_WORDS, k=600))
        return f"{_PREFIX}[prompt] system\n{_PREFIX}[response] {text}\n{_PREFIX}[score] {chance.random()}\n"
    if kind == 1:
        bar = "".join(f"\rCapturing batches: {i}/35 [00:0{i % 9}<00:05, 7.1it/s]" for i in range(36))
        return bar + "\n"
    if kind == 2:
        return (
            f"{_WORKER}WARNING 01-01 00:00:00 [scheduler.py:1] Sequence group {step} is preempted. total: {step}\n" * 9
        )
    return f"{_WORKER}DEBUG update_weights step: {step} wake up, free {chance.random()} GB\n" * 30
