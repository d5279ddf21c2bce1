"""A peer's page over the same scalars, run by an interpreter that has the peer: `peer.py NAME FOLDER STEPS PORT`."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

METRICS = (
    *("reward", "parse_rate", "structure/tool_call", "structure/response", "structure/polluted", "structure/collapsed"),
    *("entropy", "kl", "grad_norm", "completions/mean_length"),
)


def tensorboard(folder: Path, steps: int, port: str) -> list[str]:
    """Event files, and the server that shows them."""
    writer_of = importlib.import_module("tensorboardX").SummaryWriter
    with writer_of(str(folder)) as writer:
        for step in range(1, steps + 1):
            for name in METRICS:
                writer.add_scalar(name, random.random(), step)
    return [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", port, "--host", "127.0.0.1"]


def trackio(folder: Path, steps: int, port: str) -> list[str]:
    """A local project, and the server that shows it."""
    os.environ |= {"TRACKIO_DIR": str(folder), "GRADIO_SERVER_PORT": port, "GRADIO_ANALYTICS_ENABLED": "False"}
    tracker = importlib.import_module("trackio")  # which reads its folder from the environment
    tracker.init(project="p", name="r", embed=False)
    for step in range(1, steps + 1):
        tracker.log({name: random.random() for name in METRICS}, step=step)
    tracker.finish()
    return [str(Path(sys.executable).with_name("trackio")), "show", "--project", "p"]


if __name__ == "__main__":
    name, folder, steps, port = sys.argv[1:]
    begun = time.monotonic()
    command = {"tensorboard": tensorboard, "trackio": trackio}[name](Path(folder), int(steps), port)
    print(f"written in {time.monotonic() - begun:.0f} s", flush=True)
    raise SystemExit(subprocess.call(command))
