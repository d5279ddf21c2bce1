"""What the turns of a run look like: shares of the four structures, reasons ranked, parse rates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

from .records import Classified, Structure
from .structure import Reason

_FAMILY = {str(reason): reason.family for reason in Reason}


class TurnCount(NamedTuple):
    """How many turns have this step, index in their dialogue, structure and reason; None is unknown."""

    step: int | None
    turn: int | None
    structure: str
    reason: str
    turns: int = 1


@dataclass(frozen=True, slots=True)
class Example:
    """An excerpt of a turn, and its line in the file, from 1."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """The turns of one step, or of one index in their dialogues; the shares of the four structures add up to 1."""

    at: int
    turns: int
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One reason of turns that are not healthy; `share` is of all turns, `family` None for a name unknown here."""

    reason: str
    family: str | None
    count: int
    share: float
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Shares:
    """The turns of a run. `by_step` and `by_turn` are None where no turn tells, the rates without any attempt."""

    turns: int
    shares: Mapping[str, float]
    parse_rate: float | None
    lenient_parse_rate: float | None
    by_step: tuple[Part, ...] | None
    by_turn: tuple[Part, ...] | None
    reasons: tuple[Ranked, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object `structure` of `analyze --json`."""
        return {
            "turns": self.turns,
            "shares": dict(self.shares),
            "parse_rate": self.parse_rate,
            "lenient_parse_rate": self.lenient_parse_rate,
            "by_step": _rows("step", self.by_step),
            "by_turn": _rows("turn", self.by_turn),
            "reasons": [
                {"reason": r.reason, "family": r.family, "count": r.count, "share": r.share}
                | {"examples": [{"line": e.line, "text": e.text} for e in r.examples]}
                for r in self.reasons
            ],
        }

    def worst(self, parts: Sequence[Part]) -> Part | None:
        """The part furthest above the run's share of broken turns, in standard errors; None when none is above."""

        def above(part: Part) -> float:
            return (_broken(part.shares) - _broken(self.shares)) * sqrt(part.turns)

        found = max(parts, key=above)
        return found if above(found) > 0 else None


def tabulate(
    counts: Sequence[TurnCount],
    parse_rates: tuple[float | None, float | None] = (None, None),
    examples: Mapping[str, Sequence[Example]] | None = None,
) -> Shares | None:
    """Shares and ranked reasons out of counted turns, examples by reason; None without a turn."""
    structures, reasons = Counter[str](), Counter[str]()
    for row in counts:
        structures[row.structure] += row.turns
        reasons[row.reason] += row.turns
    turns = structures.total()
    if not turns:
        return None
    del reasons[Reason.OK]
    ranked = [
        Ranked(reason, _FAMILY.get(reason), count, count / turns, tuple((examples or {}).get(reason, ())))
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    by_step, by_turn = _parts(counts, lambda row: row.step), _parts(counts, lambda row: row.turn)
    return Shares(turns, _shares(structures), *parse_rates, by_step, by_turn, tuple(ranked))


class Attempts:
    """Calls that were attempted and found, counted turn by turn."""

    def __init__(self) -> None:
        self._strict = self._attempted = self._lenient = self._tried = 0

    def take(self, turn: Classified) -> None:
        """Count one turn's calls; a reader who ignores broken markers may find one that no marker opened."""
        found = len(turn.calls) + turn.recovered
        self._strict, self._attempted = self._strict + len(turn.calls), self._attempted + turn.attempted
        self._lenient, self._tried = self._lenient + found, self._tried + max(turn.attempted, found)

    def parse_rates(self) -> tuple[float | None, float | None]:
        """The share of attempted calls that parse strictly, and that such a reader finds; None without any."""
        strict = self._strict / self._attempted if self._attempted else None
        return strict, self._lenient / self._tried if self._tried else None


def excerpt(text: str, width: int) -> str:
    """At most `width` characters: the beginning and, where turns mostly break, the end.

    >>> excerpt("<tool_call>{broken}", 11)
    '<tool…oken}'
    """
    if len(text) <= width:
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _parts(counts: Iterable[TurnCount], key: Callable[[TurnCount], int | None]) -> tuple[Part, ...] | None:
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for row in counts:
        at = key(row)
        if at is not None:
            found[at][row.structure] += row.turns
    return tuple(Part(at, found[at].total(), _shares(found[at])) for at in sorted(found)) or None


def _shares(structures: Counter[str]) -> dict[str, float]:
    return {str(structure): structures[structure] / structures.total() for structure in Structure}


def _broken(shares: Mapping[str, float]) -> float:
    return shares[Structure.POLLUTED] + shares[Structure.COLLAPSED]


def _rows(name: str, parts: Iterable[Part] | None) -> list[dict[str, Any]] | None:
    return None if parts is None else [{name: p.at, "turns": p.turns, "shares": dict(p.shares)} for p in parts]
