"""What the documents say is what the code does: commands, options, names, examples, links."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typer.main import get_command

import collapsewatch
from collapsewatch.cli import FAILING, app
from collapsewatch.detectors import DETECTORS
from collapsewatch.formats import FORMATS
from collapsewatch.importers import IMPORTERS
from collapsewatch.interventions import INTERVENTIONS
from collapsewatch.queries import find_runs, open_run
from collapsewatch.records import Structure, Verdict
from collapsewatch.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = (ROOT / "README.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
COMMANDS = get_command(app).commands
(BLOCK,) = re.findall(r"```text\n(collapsewatch demo .*?)```", README, re.DOTALL)


def usage(name: str) -> str:
    """What the README's block on the commands says of one: its line and the indented ones below."""
    (found,) = re.findall(rf"^(collapsewatch {name}\b.*\n(?: +.*\n)*)", BLOCK, re.MULTILINE)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_explains_every_command_and_option(name: str) -> None:
    words = usage(name)
    assert COMMANDS[name].help in " ".join(words.split())
    options = [o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
    assert set(re.findall(r"--[a-z0-9-]+", words)) == set(options)
    for parameter in COMMANDS[name].params:
        assert parameter.help in " ".join(words.split()), f"{name}: {parameter.name}"


def test_the_readme_explains_no_other_command() -> None:
    assert re.findall(r"^collapsewatch (\w+) ", BLOCK, re.MULTILINE) == list(COMMANDS)


def test_the_readme_explains_verdicts_structures_and_exit_codes() -> None:
    for name in (*Verdict, *Structure):
        assert f"`{name}`" in README
    assert all(f"`{level}`" in README for level in FAILING)
    assert all(f"| {code} |" in README for code in (0, 2, 3, 130))


def test_the_readme_names_everything_public() -> None:
    assert [name for name in collapsewatch.__all__ if name != "__version__" and f"`{name}" not in README] == []


@pytest.mark.parametrize(
    ("family", "table"),
    [
        ("Chat formats", FORMATS),
        ("Detectors", DETECTORS),
        ("Interventions", INTERVENTIONS),
        ("Schedules", SCHEDULES),
        ("Importers", IMPORTERS),
    ],
)
def test_the_readme_lists_each_family(family: str, table: dict[str, str]) -> None:
    (members,) = re.findall(rf"^\| {family} \|(.*?)\|", README, re.MULTILINE)
    assert re.findall(r"`(\w+)`", members) == list(table)


def test_the_readme_examples_run() -> None:
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_ci_runs_the_commands_that_people_are_told() -> None:
    targets = set(re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    makefile = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = set(re.findall(r"`make (\w+)", README + CONTRIBUTING))
    assert targets and targets <= told <= makefile


def test_the_changelog_tells_outcomes_briefly() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {collapsewatch.__version__}" in text
    lines = re.findall(r"^- (.*)", text, re.MULTILINE)
    assert lines and all(len(line.split()) <= 25 for line in lines)
    assert all(line.startswith(("#", "- ")) for line in text.splitlines() if line)


def test_the_example_script_runs_and_is_watched(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "trl_script.py").read_text()
    assert len(re.findall(r"^(?!from ).*Collapse", text, re.MULTILINE)) == 2  # the docstring and the one line
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "trl_script.py")],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = find_runs(tmp_path / "logs")
    with closing(open_run(run_dir)) as run:
        assert run.status() == "finished"
        records = list(run.records(detail=True))
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert "probe/max_error" in records[0].metrics
    for record in records:
        assert len(record.rollouts) == 16 and record.control
        assert record.metrics.get("probe/max_error", 0.0) < 1e-4
        assert record.metrics["reward"] == pytest.approx(sum(row.reward for row in record.rollouts) / 16)
