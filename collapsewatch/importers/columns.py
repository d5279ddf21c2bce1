"""What the columns of foreign logs mean, and rows of them as records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import isfinite
from typing import Any, NamedTuple

from ..records import Observation, StepRecord
from .names import ALIASES, CANONICAL, FAMILIES, STEPS

_ORDER = {name: i for i, name in enumerate(ALIASES)}

_RATES = {"completions/clipped_ratio": "truncated", "empty_rate": "empty", "repetition_rate": "repeated"}

COMMON = frozenset({"epoch", "grad_norm", "learning_rate", "loss", "num_tokens", "step_time"})
"""Metrics that any training logs: of themselves they make no log of reinforcement learning."""

_EVALUATION = re.compile(r"(?:^|/)(?:eval|evaluation|test|val|valid|validation)(?:[/_-]|$)", re.IGNORECASE)
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
_WRAPPED = re.compile(r"[\w.]+\(\s*([^\s,()]+)[^()]*\)")  # np.float64(0.5), tensor(0.5, device='cuda:0')
_MANY = 2**62  # no count of steps; beyond it nothing can store one


class Meaning(NamedTuple):
    """What a column is called here, and how sure that is: the lowest rank counts. No name: of no use here."""

    name: str
    rank: tuple[int, int]
    known: bool


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

    def known(self, columns: Iterable[str]) -> set[str]:
        """The metrics among the columns that tell a log of reinforcement learning from any other training's."""
        metrics = {m.name for c in columns if (m := self[c]).known and not _EVALUATION.search(m.name)}
        return metrics - COMMON - {""}

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
        if _EVALUATION.search(column):
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
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:  # an integer too large
        return float("nan")
    except ValueError:
        wrapped = _WRAPPED.fullmatch(str(value))
        return number(wrapped[1]) if wrapped else float("nan")


class Series(NamedTuple):
    """Rows as records in step order; the columns without a meaning here; what was left out."""

    records: tuple[StepRecord, ...]
    unmapped: tuple[str, ...]
    faults: tuple[str, ...]


def series(rows: Iterable[tuple[int | None, Mapping[str, Any]]], columns: Columns) -> Series:
    """Records out of (step, logged values) rows; without any step the rows are counted.

    Rows without a training metric are left out. Rows of one step are one record, of a value logged twice the
    later counts. Where steps go back, a resumed run has begun again: what was logged from there on before is left
    out, unless they go back all the time. Values that are not finite are left out, and a KL divergence that is
    zero throughout, because then it was not measured. What logs say of structure becomes a stream; one prompt
    group is assumed, because no log tells how many there were.
    """
    read = [(step, found) for step, row in rows if (found := _metrics(row, columns))]
    if all(step is None for step, _ in read):
        read = [(i, found) for i, (_, found) in enumerate(read, 1)]
    told = [(step, found) for step, found in read if step is not None and 0 <= step < _MANY]
    faults = [f"{len(read) - len(told)} of {len(read)} rows left out, without a step"] * (len(told) < len(read))
    back = [after for (before, _), (after, _) in pairwise(told) if after < before]
    resumed = len(back) <= max(1, len(told) // 10)
    steps: dict[int, dict[str, float]] = {}
    last, dropped = -1, 0
    for step, found in told:
        while resumed and step < last and steps and next(reversed(steps)) >= step:
            steps.popitem()  # the newest: while steps only go on, they stand in their order
            dropped += 1
        steps.setdefault(step, {}).update(found)
        last = step
    if dropped:
        faults.append(f"steps go back to {', '.join(map(str, back[:3]))}: {dropped} earlier records left out")
    if not any(metrics.get("kl") for metrics in steps.values()):
        for metrics in steps.values():
            metrics.pop("kl", None)
    records = tuple(StepRecord(s, 0.0, steps[s], tuple(_streams(steps[s]))) for s in sorted(steps))
    return Series(records, columns.unmapped(), tuple(faults))


def whole(value: Any) -> int | None:
    """A step out of a log, None for what is none."""
    found = number(value)
    return int(found) if found.is_integer() else None


def _metrics(row: Mapping[str, Any], columns: Columns) -> dict[str, float]:
    """The finite metrics of a row by their names here; none if it has no training metric."""
    metrics: dict[str, float] = {}
    ranks: dict[str, tuple[int, int]] = {}
    training = False
    for column, raw in row.items():
        name, rank, known = columns[column]
        if not name or rank >= ranks.get(name, (100, 0)):
            continue
        value = number(raw)
        training |= known and name not in COMMON and not _EVALUATION.search(name)
        if isfinite(value):
            metrics[name], ranks[name] = value, rank
    return metrics if training else {}


def _streams(metrics: Mapping[str, float]) -> Iterator[Observation]:
    for name, stream in _RATES.items():
        if 0 <= metrics.get(name, -1.0) <= 1:
            yield Observation(stream, metrics[name], 1)
    if 0 <= metrics.get("parse_rate", -1.0) <= 1:
        yield Observation("parse_failure", 1.0 - metrics["parse_rate"], 1)
    if (calls := metrics.get("tools/call_frequency", -1.0)) >= 0:
        # Calls per rollout: at least 1 - calls of the rollouts made none.
        yield Observation("no_call", max(0.0, 1.0 - calls), 1)
