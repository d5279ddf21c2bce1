"""The grid of supervised runs: every cell is a valid config, and tables say what the rows say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.interventions import INTERVENTIONS
from collapsewatch.plugins import resolve
from collapsewatch.trainer.config import from_mapping
from collapsewatch.trainer.supervision import supervision
from tests.dashboard_runs import write_run

FOLDER = Path(__file__).parents[1] / "benchmarks" / "supervision"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's modules, imported from its folder."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in ("grid", "course", "verdicts", "drawn", "scale")}


def made(bench: Any, arm: str, schedule: str, rate: float, seed: int, **values: float) -> Any:
    cell = bench["grid"].Cell(arm, schedule, rate)
    measured = dict.fromkeys(bench["course"].MEASURED, 0.0) | values
    return bench["course"].Row(cell.name, arm, schedule, rate, seed, **measured)


def test_every_cell_is_a_run_of_its_own_that_the_trainer_takes(bench: Any) -> None:
    cells = list(bench["grid"].cells())
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        config = from_mapping({**cell.knobs(1), "name": cell.name}, cell.name)
        act, when = supervision(config)
        if cell.arm == "none":
            assert act is None
        else:
            assert act is not None and when is not None and (act.name, when.name) == (cell.arm, cell.schedule)
    for arm, schedules in bench["grid"].ARMS.items():
        if arm != "none":
            assert set(schedules) == set(resolve(INTERVENTIONS, arm).schedules)


def test_fixed_schedules_supervise_about_a_tenth_of_the_steps(bench: Any) -> None:
    for cell in bench["grid"].cells():
        act, when = supervision(from_mapping(cell.knobs(0), cell.name))
        if cell.schedule == "interleaved" and act is not None and when is not None:
            steps = range(bench["grid"].STEPS)
            acts = cell.knobs(0)["sft_updates"] * sum(when.due(step, False, None) for step in steps)
            assert (sum(when.on(step, False) for step in steps) if act.standing else acts) == 8


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_an_interval_holds_its_mean_and_is_that_of_other_draws(bench: Any, values: list[float]) -> None:
    found = bench["verdicts"].estimate(values)
    assert (
        min(values) - 1e-9 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= max(values) + 1e-9
    )
    rng = random.Random(1)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(2000))
    spread = (max(values) - min(values)) / 8 + 1e-9
    assert abs(means[50] - found.low) <= spread and abs(means[1950] - found.high) <= spread


def test_a_claim_is_judged_run_by_run(bench: Any) -> None:
    rows = [made(bench, "none", "", 1e-3, seed, final=seed / 10) for seed in range(5)]
    rows += [made(bench, "sft_first", "first", 1e-3, seed, final=seed / 10 + 0.05) for seed in range(5)]
    rows += [made(bench, "sft_first", "first", 3e-3, 9, final=9.0)]  # has no partner
    claim = bench["verdicts"].claims(rows)[0]
    assert claim.agrees is True and claim.difference.mean == pytest.approx(0.05)  # beyond doubt, though rewards overlap
    swapped = [replace(row, final=-row.final) for row in rows]
    assert bench["verdicts"].claims(swapped)[0].agrees is False
    assert bench["verdicts"].claims(rows)[1].agrees is None  # not run


def test_figures_are_the_dashboards_own_of_an_arm_over_rl_alone(bench: Any, tmp_path: Path) -> None:
    rows = [made(bench, arm, schedule, 1e-3, 0) for arm, schedule in (("none", ""), ("hint", "triggered"))]
    for row in rows:
        write_run(tmp_path / row.run)
    page = bench["drawn"].page(rows, tmp_path)
    assert page.count('class="plotly-graph-div"') == 6 and page.count("<h2>") == 2
    *_, reward, _, _ = page.split("Plotly.newPlot(")
    assert "none-0.001-0" in reward and "hint-triggered-0.001-0" in reward


def test_kept_alive_counts_seeds_that_rl_alone_loses(bench: Any) -> None:
    rows = [made(bench, "none", "", 1e-3, seed, alive=float(seed == 0)) for seed in range(4)]
    rows += [made(bench, "hint", "triggered", 1e-3, seed, alive=float(seed < 3), supervised=4.0) for seed in range(4)]
    (found,) = bench["verdicts"].kept_alive(rows)
    assert (found["lost_alone"], found["supervised"]) == (3, 4.0)
    assert found["alive"]["mean"] == pytest.approx(2 / 3)
    assert bench["verdicts"].table(rows).count("\n") == 3


def test_a_model_of_any_folder_gets_its_start_and_its_runs(bench: Any, tmp_path: Path) -> None:
    from collapsewatch.trainer.environments import load_environment
    from collapsewatch.trainer.models import load_tiny

    model, tokenizer = load_tiny(load_environment("chain"), 0, 0)
    model.save_pretrained(tmp_path / "fresh")
    tokenizer.save_pretrained(tmp_path / "fresh")
    folder = bench["scale"].start(tmp_path / "fresh", "chain", tmp_path, False, batches=2)
    written = (folder / "model.safetensors").read_bytes()
    assert written != (tmp_path / "fresh" / "model.safetensors").read_bytes()
    assert bench["scale"].start(tmp_path / "fresh", "chain", tmp_path, False) == folder  # it stands: nothing is taught
    assert (folder / "model.safetensors").read_bytes() == written
    for environment in bench["scale"].SIZES:
        for cell in bench["scale"].cells(folder, environment, 5, bf16=False):
            config = from_mapping({**cell.knobs(0), "name": cell.name}, cell.name)
            assert (config.model, config.environment, config.steps) == (str(folder), environment, 5)
            assert (supervision(config)[0] is None) == (cell.arm == "none")
