"""What a checkpoint can still do: the same tasks in its trained format, in another one, and with its calls repaired.

A collapse of the format takes the reward with it, whatever the model can do. If the tasks are still solved in another
call format, or once the format is helped along, what was lost is the format.
Source: arXiv 2606.26027, section 4.2: 0.0 in the trained format, 24.75 of 26.0 in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging

from collapsewatch.fixed import FixedProbe, Name
from collapsewatch.formats import writer_named
from collapsewatch.formats.base import BoundFormat
from collapsewatch.formats.detect import bind, check_name
from collapsewatch.probe import ControlProbe
from collapsewatch.records import ControlRow, Structure

from .config import TrainConfig
from .dialogues import Renderer
from .environments import Task, load_environment
from .models import load_model
from .outcomes import outcome
from .rollout import Generate, Trajectory, rollout
from .sampling import Repaired, Sampler, opener

TASK_SEED = 999_979  # below every seed that training, warm starts and fixed probes draw tasks with
MAX_TURNS, TURN_TOKENS = 8, 128


@dataclass(frozen=True, slots=True)
class View:
    """One way of looking at a checkpoint: how its episodes went, and what it gives the experts' dialogues.

    `reward`: mean over `tasks`, without those the environment failed in. `structures`: shares of all turns, with the
    `reasons` of those that are not healthy. `parse_rate`: share of attempted calls that parse, None without any.
    `probes` and `control`: as in `FixedProbe.score`; empty for the repaired view, whose model is the trained one's.
    """

    name: str
    format: str
    tasks: int
    reward: float
    structures: dict[str, float]
    reasons: dict[str, int]
    parse_rate: float | None
    probes: dict[str, float]
    control: tuple[ControlRow, ...]

    @property
    def healthy(self) -> float:
        """Share of healthy turns."""
        return self.structures[Structure.TOOL_CALL] + self.structures[Structure.RESPONSE]


class Inspector:
    """Looks at checkpoints on one set of tasks: what it says of two of them can be compared.

    Raises:
        UnknownPlugin, CannotWrite: there is no such environment or chat format, or calls cannot be written in it.
    """

    def __init__(
        self, environment: str, chat_format: str, alternate: str, tasks: int, turn_tokens: int = TURN_TOKENS
    ) -> None:
        check_name(chat_format)
        self._environment, self._chat_format, self._turn_tokens = (
            load_environment(environment),
            chat_format,
            turn_tokens,
        )
        self._alternate = writer_named(alternate)
        self._tasks = sorted(self._environment.held_out(tasks, TASK_SEED), key=self._due)

    def views(self, name: str) -> tuple[View, View, View]:
        """The checkpoint in its trained format, in the alternate one, and repaired.

        Raises:
            ModelError, TemplateError, ValueError: the model cannot be loaded, or not be talked to in these formats.
        """
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model, tokenizer = load_model(name, self._environment, 0, TrainConfig.warm_start, alternate=self._alternate)
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        trained, other = Renderer(tokenizer, self._environment), Renderer(tokenizer, self._environment, self._alternate)
        bound, other_bound = bind(self._chat_format, tokenizer), self._alternate.bind(tokenizer)
        sampler = Sampler(model, trained, self._turn_tokens)
        head: list[int] = tokenizer(opener(bound.format), add_special_tokens=False)["input_ids"]

        def as_is(due: Sequence[bool]) -> Generate:
            return sampler

        def repaired(due: Sequence[bool]) -> Generate:
            return Repaired(sampler, bound, head, due)

        return (
            self._view("trained", model, trained, bound, as_is, "fixed"),
            self._view("alternate", model, other, other_bound, as_is, "alternate"),
            self._view("repaired", model, trained, bound, repaired, None),
        )

    def _view(
        self,
        name: str,
        model: Any,
        renderer: Renderer,
        bound: BoundFormat,
        generate: Callable[[Sequence[bool]], Generate],
        probe: Name | None,
    ) -> View:
        set_seed(0)  # every view, and every checkpoint, with the same draws
        played: list[Trajectory] = []
        for due, tasks in groupby(self._tasks, self._due):
            played += rollout(list(tasks), self._environment, renderer, bound, generate(due), MAX_TURNS)
        found = outcome(played, bound)
        told, control = self._probed(probe, model, renderer, bound) if probe else ({}, ())
        return View(
            name=name,
            format=bound.name,
            tasks=len(played),
            reward=found.reward,
            structures=found.structures,
            reasons=found.reasons,
            parse_rate=found.parse_rate,
            probes=told,
            control=control,
        )

    def _probed(
        self, name: Name, model: Any, renderer: Renderer, bound: BoundFormat
    ) -> tuple[dict[str, float], tuple[ControlRow, ...]]:
        rows = [renderer.expert_row(self._environment, task) for task in self._tasks]
        probe = ControlProbe(model, bound.probe_ids.tolist())
        try:
            return FixedProbe(name, rows, bound, renderer.pad_id).score(probe)
        finally:
            probe.close()

    def _due(self, task: Task) -> tuple[bool, ...]:
        """Of each of the expert's turns, whether it is a call."""
        return tuple(bool(m.get("tool_calls")) for m in self._environment.expert(task) if m["role"] == "assistant")
