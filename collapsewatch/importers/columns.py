"""What the columns of foreign logs mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

from ..records import NOT_FINITE, VITAL
from .names import ALIASES, CANONICAL, FAMILIES, STEPS

_ORDER = {name: i for i, name in enumerate(ALIASES)}

COMMON = frozenset({"epoch", "grad_norm", "learning_rate", "loss", "num_tokens", "step_time"})
"""Metrics that any training logs: of themselves they make no log of reinforcement learning."""

EVALUATION = re.compile(r"(?:^|/)(?:eval|evaluation|test|val|valid|validation)(?:[/_-]|$)", re.IGNORECASE)
# Bookkeeping, and statistics beside the one that counts: known, and of no use here.
_BOOKKEEPING = re.compile(
    r"""(?:^|/)(?:
        timings?(?:_\w+)?/ | time/ | perf/ | mfu/ | system/ | gpu | mem(?:ory)?[_/] | clock_cycle | progress/ | async/
      | global_seqlen/ | prompt_length/ | response_length_non_aborted/ | (?:response_length|num_turns)/(?:max|min)$
      | tool_call_counts/ | critic/(?:score|rewards|advantages|returns|values|vf_|vpred|lr|grad_norm)
      | actor/(?:perf/|kl_coef|pg_clipfrac_lower) | training/(?:epoch|global_step)$ | sampling_client/
      | epoch | seed$ | time(?:stamp)?$ | wall_?time$ | date(?:time)?$ | total_flos$ | train_(?:runtime|samples|steps)
      | by_group/ | total_(?:turns|episodes|length|\w+_tokens)$ | ob_tokens | n_datums$ | groups_(?:skipped|total)$
      | num_(?:samples|actions)$ | return$
    ) | ^_ | memory | _per_sec | throughput | tokens_per | (?:^|[_/])(?:seconds|secs|tokens_seen)$""",
    re.IGNORECASE | re.VERBOSE,
)
_NOT_FINITE = frozenset({"nan", "inf", "infinity", "np.float64(nan)", "np.float32(nan)", "np.float64(inf)"})


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a column is called here, and how sure that is: the lowest rank counts. No name: of no use here.

    `tells` is whether it tells a log of reinforcement learning from any other training's.
    """

    name: str
    rank: tuple[int, int]
    known: bool
    tells: bool = field(init=False)

    def __post_init__(self) -> None:
        tells = self.known and self.name not in COMMON | {""} and not EVALUATION.search(self.name)
        object.__setattr__(self, "tells", tells)


class Columns:
    """The meaning of each column of a log; a user's `names` win over everything that is known here."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = dict(names or {})
        self._found: dict[str, Meaning] = {}

    def __getitem__(self, column: str) -> Meaning:
        found = self._found.get(column)
        if found is None:
            found = self._found[column] = self._look_up(column)
        return found

    def metrics(self, row: Mapping[str, Any]) -> tuple[dict[str, float], bool]:
        """The finite metrics of a row by their names here, and whether one tells of training by RL.

        A vital one that is not finite leaves a mark.
        """
        metrics: dict[str, float] = {}
        ranks: dict[str, tuple[int, int]] = {}
        training, found = False, self._found
        for column, raw in row.items():
            meaning = found.get(column) or self[column]
            name = meaning.name
            if not name or meaning.rank >= ranks.get(name, (100, 0)):
                continue
            value = number(raw)
            if isfinite(value):
                metrics[name], ranks[name] = value, meaning.rank
                training = training or meaning.tells
            elif str(raw).strip("+-").lower() in _NOT_FINITE:  # a number all the same
                training = training or meaning.tells
                if name in VITAL:
                    metrics[NOT_FINITE] = 1.0
        return metrics, training

    def known(self, columns: Iterable[str]) -> set[str]:
        """The metrics among the columns that tell a log of reinforcement learning from any other training's."""
        return {meaning.name for column in columns if (meaning := self[column]).tells}

    def step(self, columns: Iterable[str]) -> str | None:
        """The column that counts the steps."""
        mapped = {c: "step" if self.names.get(c) == "step" else c.lower() for c in columns}
        return min((c for c in mapped if mapped[c] in STEPS), key=lambda c: STEPS.index(mapped[c]), default=None)

    def unmapped(self) -> tuple[str, ...]:
        """The columns asked for so far that have no meaning here."""
        return tuple(sorted(c for c, m in self._found.items() if not m.known and m.name))

    def _look_up(self, column: str) -> Meaning:
        if column in self.names and self.names[column] != "step":
            return Meaning(self.names[column], (0, 0), True)
        if column in self.names or column.lower() in STEPS:
            return Meaning("", (9, 0), False)
        if EVALUATION.search(column):
            return Meaning(column, (1, 0), True)
        plain = column.lower().replace(" ", "_")
        parts = plain.split("/")
        for rank, spelling in enumerate((column, plain, *("/".join(parts[i:]) for i in range(1, len(parts))))):
            if spelling in CANONICAL or spelling.startswith(FAMILIES):
                return Meaning(spelling, (1 + 2 * rank, 0), True)
            if spelling in ALIASES:
                return Meaning(ALIASES[spelling], (2 + 2 * rank, _ORDER[spelling]), True)
            if rank == 1 and _BOOKKEEPING.search(plain):
                return Meaning("", (9, 0), False)
        return Meaning(column, (99, 0), False)


def number(value: Any) -> float:
    """A number out of a log, NaN for anything else: loggers print numbers as text, and `nan` among them.

    >>> number("1.5e-6"), number("np.float64(0.5)"), number(True), number("n/a")
    (1.5e-06, 0.5, nan, nan)
    """
    if isinstance(value, str):
        if value.endswith(")"):  # np.float64(0.5), tensor(0.5, device='cuda:0')
            value = value[value.find("(") + 1 : -1].partition(",")[0]
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return nan
    try:
        return float(value)
    except (OverflowError, ValueError):  # an integer too large, or no number
        return nan


def whole(value: Any) -> int | None:
    """A step out of a log, None for what is none."""
    found = number(value)
    return int(found) if found.is_integer() else None
