"""Format and capability from the probes' series: verdict, numbers, words; and what `analyze` makes of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from collapsewatch.capability import KEPT, LAST, LOST, capability, sentence
from collapsewatch.curves import Curve
from collapsewatch.page import write_page
from collapsewatch.records import Observation, StepRecord
from collapsewatch.report import analyze
from collapsewatch.store import Store
from collapsewatch.summary import print_summary

shares = st.floats(0.001, 1.0)


def curve(*values: float) -> Curve:
    return Curve(tuple(range(1, 10 * len(values), 10)), values, len(values))


def probed(**series: list[float]) -> dict[str, Curve]:
    names = {"trained": "fixed/turn", "other": "alternate/turn", "frame": "fixed/format", "content": "fixed/content"}
    return {names[key]: curve(*values) for key, values in series.items()}


@pytest.mark.parametrize(
    ("other", "trained", "verdict", "state"),
    [
        ([0.7, 0.7, 0.68], [0.9, 0.5, 0.0], "intact", "lost"),
        ([0.7, 0.3, 0.0], [0.9, 0.5, 0.0], "lost", "lost"),
        ([0.7, 0.5, 0.45], [0.9, 0.5, 0.0], "unknown", "lost"),
        ([0.7, 0.7, 0.7], [0.9, 0.9, 0.92], "intact", "held"),
        ([0.7, 0.2, 0.1], [0.9, 0.9, 0.88], "intact", "held"),  # what the other format lost, the trained one shows
        ([0.7, 0.7, 0.7], [0.9, 0.6, 0.6], "intact", "worn"),
        ([0.7, 0.1, 0.1], [0.9, 0.6, 0.6], "unknown", "worn"),
        ([0.0, 0.0, 0.0], [0.9, 0.0, 0.0], "lost", "lost"),  # a format it never had shows nothing kept
    ],
)
def test_what_comes_out_right_in_either_format_can_be_done(
    other: list[float], trained: list[float], verdict: str, state: str
) -> None:
    found = capability(probed(trained=trained, other=other, frame=[0.9, 0.9, 0.9], content=[0.9, 0.9, 0.9]))
    assert found is not None
    assert (found.verdict, found.format.state) == (verdict, state)
    assert (found.format.probe, found.without.probe) == ("fixed/turn", "alternate/turn")


@given(start=shares, end=shares)
def test_the_verdict_is_of_what_is_left_of_the_start(start: float, end: float) -> None:
    found = capability(probed(trained=[0.9, 0.0], other=[start, end]))
    assert found is not None and found.without.kept == pytest.approx(end / start)
    expected = "intact" if end / start >= KEPT else "lost" if end / start < LOST else "unknown"
    assert found.verdict == expected
    # What only scales all figures changes nothing.
    half = capability(probed(trained=[0.45, 0.0], other=[start / 2, end / 2]))
    assert half is not None and half.verdict == expected


@given(st.lists(shares, min_size=LAST + 1, max_size=12), st.integers(-LAST, -1))
def test_one_freak_scoring_at_the_end_decides_nothing(values: list[float], at: int) -> None:
    steady = [values[0]] * len(values)
    freak = list(steady)
    freak[at] = 1e-9
    assert capability(probed(trained=steady, other=freak)) == capability(probed(trained=steady, other=steady))


def test_without_an_alternate_format_calls_inside_their_frame_decide() -> None:
    found = capability(probed(trained=[0.8, 0.02], frame=[0.98, 0.02], content=[0.8, 0.75]))
    assert found is not None and (found.verdict, found.without.probe) == ("intact", "fixed/content")
    assert sentence(found) == (
        "capability intact, format lost: control tokens right in 0.98 -> 0.02 of turns, calls inside them 0.80 -> 0.75"
    )


@pytest.mark.parametrize(
    "curves", [{}, probed(trained=[0.9]), probed(other=[0.9, 0.8]), probed(frame=[0.9, 0.1], content=[0.9])]
)
def test_nothing_is_said_without_two_scorings(curves: dict[str, Curve]) -> None:
    assert capability(curves) is None


def run(folder: Path, *, alternate: bool) -> Path:
    """A run whose format is lost from step 31 on, scored every tenth step; the other format holds."""
    store = Store(folder)
    for t in range(1, 81):
        lost = t > 30
        metrics = {"reward": 0.0 if lost else 0.8}
        if t == 1 or t % 10 == 0:
            metrics |= {"fixed/turn": 0.04 if lost else 0.77, "fixed/format": 0.9, "fixed/content": 0.8}
            metrics |= {"alternate/turn": 0.61 if lost else 0.64} if alternate else {}
        seen = (Observation("polluted", 0.9 if lost else 0.02, 8), Observation("collapsed", 0.0, 8))
        store.log_step(StepRecord(t, float(t), metrics, seen))
    store.close()
    return folder


def test_analyze_says_that_the_capability_is_intact(tmp_path: Path) -> None:
    (report,) = analyze(run(tmp_path / "probed", alternate=True))
    assert report.verdict == "collapsed"
    told = json.loads(json.dumps(report.to_dict()))["capability"]
    assert (told["verdict"], told["format"]["state"], told["without"]["state"]) == ("intact", "lost", "held")
    assert told["without"] == {
        "probe": "alternate/turn", "start": 0.64, "end": 0.61, "kept": pytest.approx(0.61 / 0.64), "state": "held",
    }  # fmt: skip
    said = "apability intact, format lost: turns right in the trained format 0.77 -> 0.04, in another 0.64 -> 0.61"
    assert said in told["said"]
    text = io.StringIO()
    print_summary([report], Console(file=text, width=200))
    assert said in " ".join(text.getvalue().split())
    write_page([report], tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text().replace("&gt;", ">")


def test_a_run_without_probes_has_no_such_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "plain")
    for t in range(1, 20):
        store.log_step(StepRecord(t, float(t), {"reward": 0.5}, (Observation("polluted", 0.0, 8),)))
    store.close()
    (report,) = analyze(tmp_path / "plain")
    assert report.to_dict()["capability"] is None
    text = io.StringIO()
    print_summary([report], Console(file=text, width=200))
    assert "probes" not in text.getvalue()
