"""Shares, parse rates and rankings of counted turns, against a second computation."""

from __future__ import annotations

from fractions import Fraction
from math import isclose, sqrt

from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.records import Call, Classified, Structure
from collapsewatch.shares import Attempts, Part, Shares, TurnCount, excerpt, tabulate
from collapsewatch.structure import Reason

REASONS = st.sampled_from([*map(str, Reason), "a_reason_of_tomorrow"])
ROWS = st.lists(
    st.builds(
        TurnCount,
        step=st.none() | st.integers(0, 3),
        turn=st.none() | st.integers(0, 3),
        structure=st.sampled_from([*map(str, Structure)]),
        reason=REASONS,
        turns=st.integers(1, 5),
    )
)


def share_of(rows: list[TurnCount], structure: str) -> Fraction:
    single = [row.structure for row in rows for _ in range(row.turns)]
    return Fraction(single.count(structure), len(single))


@given(ROWS)
def test_shares_and_ranks_are_those_of_the_single_turns(rows: list[TurnCount]) -> None:
    found = tabulate(rows)
    if not rows:
        assert found is None
        return
    assert found is not None and found.turns == sum(row.turns for row in rows)
    for structure in Structure:
        assert isclose(found.shares[structure], share_of(rows, structure))
    for parts, index in ((found.by_step, 0), (found.by_turn, 1)):
        known = sorted({row[index] for row in rows} - {None})
        assert [part.at for part in parts or ()] == known and (parts is None) == (not known)
        for part in parts or ():
            own = [row for row in rows if row[index] == part.at]
            assert part.turns == sum(row.turns for row in own)
            assert all(isclose(part.shares[s], share_of(own, s)) for s in Structure)
    counts = [r.count for r in found.reasons]
    assert counts == sorted(counts, reverse=True) and "ok" not in [r.reason for r in found.reasons]
    for r in found.reasons:
        assert r.count == sum(row.turns for row in rows if row.reason == r.reason)
        assert isclose(r.share, r.count / found.turns)
        assert r.family == (None if r.reason == "a_reason_of_tomorrow" else Reason(r.reason).family)


def judged(calls: int, attempted: int, recovered: int) -> Classified:
    return Classified(Structure.POLLUTED, "", (Call("f", {}),) * calls, attempted, recovered)


def parse_rates(turns: list[Classified]) -> tuple[float | None, float | None]:
    attempts = Attempts()
    for turn in turns:
        attempts.take(turn)
    return attempts.parse_rates()


def test_a_lenient_reader_counts_what_it_finds_as_attempted() -> None:
    assert parse_rates([]) == parse_rates([judged(0, 0, 0)]) == (None, None)
    assert parse_rates([judged(2, 4, 1), judged(0, 0, 0), judged(1, 1, 0)]) == (3 / 5, 4 / 5)
    assert parse_rates([judged(0, 1, 2), judged(0, 1, 0)]) == (0.0, 2 / 3)  # two calls found where one was opened
    assert parse_rates([judged(0, 0, 1)]) == (None, 1.0)  # no marker opened it


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200)), min_size=1))
def test_the_worst_part_is_the_most_significant_one(sizes: list[tuple[int, int]]) -> None:
    """Oracle: the z score of a part's broken turns against the run's rate."""
    drawn = [(turns, min(bad, turns)) for turns, bad in sizes]
    rows = [TurnCount(i, None, "polluted", "empty", bad) for i, (_, bad) in enumerate(drawn)]
    rows += [TurnCount(i, None, "response", "ok", turns - bad) for i, (turns, bad) in enumerate(drawn)]
    found = tabulate(rows)
    assert found is not None and found.by_step is not None
    rate = sum(bad for _, bad in drawn) / sum(turns for turns, _ in drawn)
    if not 0 < rate < 1:
        return
    scores = [(bad - turns * rate) / sqrt(turns * rate * (1 - rate)) for turns, bad in drawn]
    worst = found.worst(found.by_step)
    if worst is None:
        assert max(scores) < 1e-9
    else:
        assert isclose(scores[worst.at], max(scores), abs_tol=1e-9)


def test_no_part_is_worst_among_equals() -> None:
    shares = dict.fromkeys(map(str, Structure), 0.25)
    parts = (Part(0, 4, shares), Part(1, 8, shares))
    assert Shares(12, shares, None, None, parts, None, ()).worst(parts) is None


@given(st.text(), st.integers(1, 40))
def test_an_excerpt_keeps_both_ends(text: str, width: int) -> None:
    found = excerpt(text, width)
    if len(text) <= width:
        assert found == text
    else:
        head, mark, tail = found[: width // 2], found[width // 2], found[width // 2 + 1 :]
        assert len(found) == width and mark == "…" and text.startswith(head) and text.endswith(tail)
