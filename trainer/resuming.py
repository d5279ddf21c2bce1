"""Going on with a run that was cut short: from its last whole checkpoint, by the config it was begun with."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path

from collapsewatch.loop import STATE_FILE as SUPERVISOR
from collapsewatch.monitor import STATE_FILE as DETECTION

from .config import ConfigError, TrainConfig

CHECKPOINTS = "checkpoints"
"""A run's folder of checkpoints."""


def last_checkpoint(config: TrainConfig) -> Path:
    """The checkpoint that a resumed training of this config starts from.

    Raises:
        ConfigError: there is no such run, no whole checkpoint, nothing left to do, or the run was of another config.
    """
    run_dir = Path(config.logdir) / config.name
    try:
        begun = tomllib.loads((run_dir / "config.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"resume: got {config.name!r}, which is no run in {config.logdir!r}, expected one that was begun"
        ) from error
    for knob, value in asdict(config).items():
        if knob in begun and knob != "logdir" and begun[knob] != _plain(value):
            raise ConfigError(f"resume: got {knob} = {value!r}, expected {begun[knob]!r}, with which the run was begun")
    found = whole_checkpoints(run_dir, config.intervention != "none")
    if not found:
        raise ConfigError(f"resume: got {config.name!r}, which has no checkpoint, expected a run with `save_every`")
    step = max(found)
    if step >= config.steps:
        raise ConfigError(f"resume: got {config.name!r}, which is finished, expected a run that was cut short")
    return found[step]


def whole_checkpoints(run_dir: Path, supervised: bool) -> dict[int, Path]:
    """Checkpoints by step. Our own state is written last, so one that holds it is whole."""
    wanted = (DETECTION, *([SUPERVISOR] if supervised else []))
    folders = (run_dir / CHECKPOINTS).glob("checkpoint-*")
    return {int(f.name.rpartition("-")[2]): f for f in folders if all((f / name).is_file() for name in wanted)}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
