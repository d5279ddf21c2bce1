"""What a transformers trainer says of its checkpoints and settings."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from .marks import RATE, SETTINGS
from .monitor import Monitor, saved_state
from .records import Alarm

_log = logging.getLogger(__name__)


def go_on(monitor: Monitor, trainer: Any, step: int) -> Alarm | None:
    """Detection as the checkpoint that is resumed from has it; where it has none, from the run's own record."""
    for folder in (resumed_from(trainer), Path(trainer.args.output_dir) / f"checkpoint-{step}"):
        try:
            state = None if folder is None else saved_state(folder)
            if state is not None and state.get("step") == step:
                return monitor.go_on(step, state)
        except (OSError, ValueError) as error:
            _log.warning("collapsewatch: the state in %s is left out: %s", folder, error)
    return monitor.go_on(step)


def checkpoint_of(trainer: Any, step: int) -> Path:
    """The folder of the checkpoint that a training is resumed from at `step`."""
    return resumed_from(trainer) or Path(trainer.args.output_dir) / f"checkpoint-{step}"


def resumed_from(trainer: Any) -> Path | None:
    """The checkpoint that the running `trainer.train(resume_from_checkpoint=...)` was given: it tells no callback."""
    frame = sys._getframe()
    while frame is not None:
        found = frame.f_locals.get("resume_from_checkpoint")
        if frame.f_locals.get("self") is trainer and isinstance(found, str | Path):
            return Path(found)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def settings_of(trainer: Any) -> dict[str, float]:
    """What may be switched while a trainer trains: the numbers among `SETTINGS`."""
    groups = getattr(trainer.optimizer, "param_groups", None) or [{}]
    found = {name: getattr(trainer, name, None) for name in SETTINGS} | {RATE: groups[0].get("lr")}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
