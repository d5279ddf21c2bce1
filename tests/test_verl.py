"""verl's plug-in in verl's own classes: one actor process on this CPU, its FSDP engine, worker and tracking."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from collapsewatch.formats.detect import bind
from collapsewatch.queries import open_run
from collapsewatch.records import SLOTS

ROOT = Path(__file__).parents[1]
UPDATES, SIZE = 2, 4
needs_verl = pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="verl is not installed")


def actor(tmp_path: Path, *words: object, **settings: str) -> dict[str, Any]:
    """Train in a process of its own; what it trained on, and the weights after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COLLAPSEWATCH")} | {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        **{"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        "VERL_USE_EXTERNAL_MODULES": "collapsewatch.verl.plugin",  # as the entry point does, where it is installed
        **settings,
    }
    model, packing, epochs, temperature = words
    out = tmp_path / "out.pt"
    command = [sys.executable, str(ROOT / "tests" / "verl_worker.py"), model, packing, out, epochs, temperature]
    done = subprocess.run(list(map(str, command)), env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = torch.load(out)
    return found


@needs_verl
@pytest.mark.parametrize(
    ("packing", "epochs", "temperature"), [("packed", 1, 0.7), ("padded", 1, 1.0), ("padded", 3, 0.7)]
)
def test_an_update_is_one_step_of_the_run(
    tmp_path: Path, model_path: Path, tokenizer: Any, packing: str, epochs: int, temperature: float
) -> None:
    told = actor(
        tmp_path, model_path, packing, epochs, temperature, COLLAPSEWATCH_NAME="run", COLLAPSEWATCH_LOGDIR=str(tmp_path)
    )
    batch = told["batch"]
    with closing(open_run(tmp_path / "run")) as run:
        assert run.status() == "finished" and not [event for event in run.events() if event.name == "fault"]
        records = list(run.records(detail=True))
    assert [record.step for record in records] == [1, 2]
    mask = batch["response_mask"].bool().numpy()
    width = mask.shape[1]
    for n, record in enumerate(records):
        rows = sorted(record.rollouts, key=lambda row: row.rollout)
        # Row identity: shuffled and split by verl, each reward and advantage is at its own tokens.
        assert [row.rollout for row in rows] == [n * SIZE + i for i in range(SIZE)]
        assert [row.reward for row in rows] == pytest.approx([i / 10 for i in range(SIZE)])
        assert [row.advantage for row in rows] == [i - 3.0 for i in range(SIZE)]
        assert [row.group for row in rows] == [2 * n, 2 * n, 2 * n + 1, 2 * n + 1]
        assert [row.tokens for row in rows] == mask.sum(1).tolist()
        length = batch["attention_mask"][:, -width:].sum(1)
        assert [row.text for row in rows] == [
            tokenizer.decode(ids[:count]) for ids, count in zip(batch["responses"], length, strict=True)
        ]
        # verl's own metrics, from what would be another process.
        assert record.metrics["critic/score/mean"] == 0.25 * (n + 1) and "note" not in record.metrics
        # The log-probs, against the whole head's, of the weights before this update.
        if n == 0:
            check_probabilities(record, told["logp"][0][:, -width:].numpy(), batch, mask, bind("auto", tokenizer))


def check_probabilities(record: Any, logp: np.ndarray, batch: Any, mask: np.ndarray, bound: Any) -> None:
    ids = batch["responses"].numpy()
    slots = bound.slots(ids, mask)
    p = np.exp(logp[..., bound.probe_ids])  # (N, T, K)
    for row in record.control:
        k = bound.probe_tokens.index(row.token)
        code = SLOTS.index(row.slot)
        where = slots.alive & (slots.slot == code) & (slots.legal[..., k] == row.legal)
        assert row.n == where.sum()
        assert row.expected == pytest.approx(p[..., k][where].sum(), rel=1e-4, abs=1e-6)


@needs_verl
def test_the_weights_are_those_of_the_unwatched_run_and_without_a_name_nothing_is_kept(
    tmp_path: Path, model_path: Path
) -> None:
    plain = actor(tmp_path, model_path, "packed", 1, 0.7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pt"]
    watched = actor(tmp_path, model_path, "packed", 1, 0.7, COLLAPSEWATCH_NAME="run")
    assert all(torch.equal(value, watched["weights"][name]) for name, value in plain["weights"].items())
    assert (tmp_path / "logs" / "run" / "run.duckdb").exists()


def test_verl_is_imported_in_its_own_room_only() -> None:
    code = "import sys, collapsewatch.watch, collapsewatch.cli, collapsewatch.verl.plugin; print('verl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr
    sources = [path for path in (ROOT / "collapsewatch").rglob("*.py") if path.parent.name != "verl"]
    assert not [path for path in sources if "import verl" in path.read_text() or "from verl" in path.read_text()]
