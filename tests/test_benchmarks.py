"""What the benchmarks measure on: seeded turns that are what their kind says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from collapsewatch import classify
from collapsewatch.formats import FORMATS
from collapsewatch.records import Structure

MADE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "seeded_turns.py"))
WHOLE = {"call": Structure.TOOL_CALL, "reply": Structure.RESPONSE}


@pytest.mark.parametrize("name", [name for name in FORMATS if name in MADE["FAMILIES"]])
def test_whole_turns_are_healthy_in_every_format(name: str) -> None:
    made = MADE["turns"](name, 60, 30, seed=1)
    assert made == MADE["turns"](name, 60, 30, seed=1) != MADE["turns"](name, 60, 30, seed=2)
    whole = [turn for turn in made if turn.kind in WHOLE]
    assert len({turn.kind for turn in whole}) == 2 and len(whole) < len(made)
    assert [classify(turn.text, name).structure for turn in whole] == [WHOLE[turn.kind] for turn in whole]


def test_broken_turns_are_broken() -> None:
    made = [turn for turn in MADE["turns"]("hermes", 600, 30, seed=0) if turn.kind not in WHOLE]
    assert len({turn.kind for turn in made}) == 14
    assert [turn for turn in made if classify(turn.text).structure.healthy] == []
