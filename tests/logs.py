"""What the tests of logs share: writing them, reading them, and what a step of verl looks like."""

from __future__ import annotations

import json
from pathlib import Path

from collapsewatch.importers import Imported, Options, Unreadable, runs

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def state(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": rows}))
    return path


def read(root: Path, **options: object) -> dict[str, Imported]:
    """Every run below a path by name; nothing there is unreadable."""
    found = list(runs(root, Options(**options)))  # type: ignore[arg-type]
    assert not [run for run in found if isinstance(run, Unreadable)], found
    return {run.name: run for run in found if isinstance(run, Imported)}


def told(run: Imported, metric: str = "reward") -> list[tuple[int, float]]:
    return [(r.step, r.metrics[metric]) for r in run.records if metric in r.metrics]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def verl_step(step: int, reward: float, length: float = 300.0, clip: float = 0.0, more: str = "") -> str:
    return (
        f"step:{step} - actor/entropy:0.3 - actor/grad_norm:np.float64(0.25) - critic/score/mean:{reward} - "
        f"critic/score/max:1.0 - response_length/mean:{length} - response_length/clip_ratio:{clip} - "
        f"num_turns/mean:np.float64(3.5) - timing_s/step:61.02{more}"
    )
