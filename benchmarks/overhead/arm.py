"""One of the two trainings, at the parent's pace: ARM KNOBS, told by `__main__`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback

import collapsewatch.trainer.train as training
from collapsewatch.callback import CollapseCallback
from collapsewatch.monitor import Monitor
from collapsewatch.trainer.config import from_mapping
from collapsewatch.trainer.environments import load_environment
from collapsewatch.trainer.models import tiny_tokenizer

VOCABULARY, HIDDEN = 151_936, 1_536


class Bytes(TorchDispatchMode):
    """Bytes of tensors made inside and still alive: `now`, and the `peak` of that."""

    now = peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage())._cdata not in known:
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


class Moved(TorchDispatchMode):
    """Bytes that came from the card to the host in whole tensors: `total`."""

    total, on = 0, False

    def __enter__(self) -> Any:
        self.on = True
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.on = False
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in tree_leaves((args, kwargs))):
            self.total += sum(
                leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.is_cpu
            )
        return out


class Pace:
    """Waits for the parent before each step, and tells it what the last one took."""

    def __init__(self) -> None:
        self._told = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not for the parent
        self._began: tuple[float, float] | None = None
        self.first, self.losses = True, list[float]()
        self.stages: dict[str, float] = defaultdict(float)
        self.bytes, self.moved = Bytes(), Moved()

    def step(self) -> None:
        self.first = self._began is None
        self.tell(**self._took())
        if not sys.stdin.readline():
            raise SystemExit("overhead: the parent is gone")
        self.stages.clear()
        self._began = self._clocks()

    def done(self) -> None:
        self.tell(**self._took(), losses=self.losses, hook_bytes=self.bytes.peak, moved_bytes=self.moved.total)

    def tell(self, **values: Any) -> None:
        print(json.dumps(values), file=self._told, flush=True)

    def _took(self) -> dict[str, Any]:
        if self._began is None:
            return {}
        wall, cpu = (now - then for now, then in zip(self._clocks(), self._began, strict=True))
        return {"wall": wall, "cpu": cpu, "stages": dict(self.stages)}

    def _clocks(self) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    @contextlib.contextmanager
    def timed(self, stage: str, within: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
        """Adds the block's time to its stage, without what other stages take inside it."""
        began, others = time.perf_counter(), sum(self.stages.values())
        with contextlib.ExitStack() as stack:
            stack.enter_context(within)
            if self.first and not self.moved.on:
                stack.enter_context(self.moved)
            if self.first and stage == "probe":
                stack.enter_context(self.bytes)
            yield
        self.stages[stage] += time.perf_counter() - began - (sum(self.stages.values()) - others)


def train(arm: str, setup: dict[str, Any]) -> None:
    """Trains, watched or not, at the parent's pace."""
    pace, guard = Pace(), Monitor.guard

    class Unwatched(TrainerCallback):  # type: ignore[misc]
        """No callback at all but for the clock."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def close(self, *args: Any) -> None: ...

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            super().on_step_begin(*args, **kwargs)
            pace.step()

        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            super().on_log(*args, logs=logs, **kwargs)
            pace.losses += [logs["loss"]] if "loss" in logs else []

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            pace.done()
            super().on_train_end(*args, **kwargs)

    class Watched(Unwatched, CollapseCallback):
        __init__ = CollapseCallback.__init__
        close = CollapseCallback.close

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            with pace.timed("rest", contextlib.nullcontext()):
                super().on_step_end(*args, **kwargs)

    replaced = {"CollapseCallback": Watched if arm == "watched" else Unwatched}
    if "layers" in setup:
        torch.set_num_threads(os.cpu_count() or 1)
        replaced["load_model"] = lambda *args, **kwargs: large_head(setup["layers"])
    with (
        mock.patch.multiple(training, **replaced),
        mock.patch.object(Monitor, "guard", lambda monitor, stage: pace.timed(stage, guard(monitor, stage))),
    ):
        training.train(from_mapping({**setup["knobs"], "name": arm}, "overhead"))


def large_head(layers: int) -> tuple[Any, Any]:
    """A random Qwen2 with the head of Qwen2.5-1.5B; most of its tokens stand for no text."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(load_environment("chain"))
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=8_960,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return Qwen2ForCausalLM(config), tokenizer


if __name__ == "__main__":
    train(sys.argv[1], json.loads(sys.argv[2]))
