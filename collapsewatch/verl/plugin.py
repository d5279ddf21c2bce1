"""What verl loads by its entry point: it wraps the FSDP actor and verl's tracking once they are imported.

Only with COLLAPSEWATCH_NAME set, which has to be the same in all processes of a training.
"""

from __future__ import annotations

import functools
import logging
import numbers
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..imported import after_import
from ..store import Store
from .actor import ActorWatch
from .rows import ROW

_log = logging.getLogger(__name__)
DRIVER = 32_767
"""The rank under which the trainer process keeps its journal: the highest there can be, which no actor has."""


def run_dir() -> Path:
    """The run's folder, `COLLAPSEWATCH_LOGDIR/COLLAPSEWATCH_NAME`."""
    return Path(os.environ.get("COLLAPSEWATCH_LOGDIR") or "logs") / os.environ["COLLAPSEWATCH_NAME"]


def watch_engine(module: ModuleType) -> None:
    """Wrap what the language-model engine does in an update: forward, the last step's schedule, checkpoints."""
    engine = module.FSDPEngineWithLMHead
    critic = module.FSDPEngineWithValueHead

    def initialize(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not isinstance(self, critic) and not self.engine_config.forward_only:
            self._collapsewatch = ActorWatch(self, run_dir())  # misconfigured, it fails here, before step 1
        return result

    def outputs(
        original: Callable[..., Any], self: Any, output: Any, output_args: Any, micro_batch: Any, *a: Any, **k: Any
    ) -> Any:
        watch: ActorWatch | None = getattr(self, "_collapsewatch", None)
        if watch is None or not torch.is_grad_enabled() or "advantages" not in micro_batch:
            return original(self, output, output_args, micro_batch, *a, **k)
        columns = None
        with watch.guard("probe"):
            columns = watch.columns(output, output_args, micro_batch)
        result = original(self, output, output_args, micro_batch, *a, **k)
        with watch.guard("rows"):
            watch.take(columns, micro_batch, result)
        return result

    def scheduled(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)  # once an update, with its last mini-batch
        if (watch := getattr(self, "_collapsewatch", None)) is not None:
            watch.end_step()
        return result

    def loaded(original: Callable[..., Any], self: Any, local_path: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, local_path, *args, **kwargs)
        if (watch := getattr(self, "_collapsewatch", None)) is not None and local_path:
            watch.loaded(str(local_path))
        return result

    _wrap(engine, "initialize", initialize)
    _wrap(engine, "prepare_model_outputs", outputs)
    _wrap(engine, "lr_scheduler_step", scheduled)
    _wrap(engine, "load_checkpoint", loaded)


def number_rows(module: ModuleType) -> None:
    """Give every row of an update a number, before verl shuffles and splits the batch."""
    original = module.make_iterator

    @functools.wraps(original)
    def make_iterator(tensordict: Any, *args: Any, **kwargs: Any) -> Any:
        if "advantages" in tensordict and ROW not in tensordict:
            tensordict[ROW] = torch.arange(tensordict.shape[0], device=tensordict["advantages"].device)
        return original(tensordict, *args, **kwargs)

    vars(module)["make_iterator"] = make_iterator


def keep_metrics(module: ModuleType) -> None:
    """Keep what verl logs beside what the actors measured, by step."""

    def log(original: Callable[..., Any], self: Any, data: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        result = original(self, data, step, *args, **kwargs)
        try:
            if not hasattr(self, "_collapsewatch"):
                self._collapsewatch = None  # if it cannot be opened, it is said once
                self._collapsewatch = Store(run_dir(), rank=DRIVER)
            if self._collapsewatch is not None:
                self._collapsewatch.append("metrics", _metric_rows(data, step))
        except Exception:
            _log.exception("collapsewatch: verl's metrics are not kept; training goes on")
        return result

    def finish(original: Callable[..., Any], self: Any, exit_code: int = 0) -> Any:
        store, self._collapsewatch = getattr(self, "_collapsewatch", None), None
        if store is not None:
            store.close()
        return original(self, exit_code)

    _wrap(module.Tracking, "log", log)
    _wrap(module.Tracking, "finish", finish)


def _metric_rows(data: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    values = {name: float(value) for name, value in data.items() if isinstance(value, numbers.Real)}
    return [{"step": step, "rank": 0, "metric": name, "value": value} for name, value in values.items()]


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by `around(original, self, ...)`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


if os.environ.get("COLLAPSEWATCH_NAME"):
    after_import("verl.workers.engine.fsdp.transformer_impl", watch_engine)
    after_import("verl.utils.tensordict_utils", number_rows)
    after_import("verl.utils.tracking", keep_metrics)
