"""The intervention and the schedule that a config asks for, with their knobs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from collapsewatch.interventions import INTERVENTIONS
from collapsewatch.interventions.base import Intervention
from collapsewatch.plugins import resolve
from collapsewatch.schedules import SCHEDULES, Schedule
from collapsewatch.supervisor import Supervisor

from .config import ConfigError, TrainConfig


def supervision(config: TrainConfig) -> tuple[Intervention | None, Schedule | None]:
    """What the supervisor does for the run, and when.

    Raises:
        UnknownPlugin: an intervention or schedule that is neither listed nor importable.
        ConfigError: a knob that they do not know or take, or a schedule that makes no sense for the intervention.
    """
    if config.intervention == "none":
        return None, None
    kind: type[Intervention] = resolve(INTERVENTIONS, config.intervention, "intervention (or 'none')")
    usual = {"learning_rate": config.sft_learning_rate, "updates": config.sft_updates, "seed": config.seed}
    taken = _parameters(kind)
    usual = {name: value for name, value in usual.items() if "updates" in taken and name in taken}
    act = _made("intervention_knobs", kind, {**usual, **config.intervention_knobs})
    when: type[Schedule] = resolve(SCHEDULES, config.schedule or act.schedules[0], "schedule")
    usual = {"cooldown": config.cooldown} if "cooldown" in _parameters(when) else {}
    schedule = _made("schedule_knobs", when, {**usual, **config.schedule_knobs})
    try:
        Supervisor(act, schedule)
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    return act, schedule


def _made(where: str, kind: type[Any], knobs: Mapping[str, Any]) -> Any:
    """`kind` with these knobs."""
    taken = _parameters(kind)
    if unknown := sorted(knobs.keys() - taken):
        told = f"expected one of {', '.join(sorted(taken))}" if taken else "expected none"
        raise ConfigError(f"{where}: got unknown knob {unknown[0]!r} of {kind.__name__}, {told}")
    try:
        return kind(**knobs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _parameters(kind: type[Any]) -> set[str]:
    """Names of what a class is made of, those included that it hands on to its base."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found |= {p.name for p in parameters if p.kind in named}
        if base is object or all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found - {"self"}
