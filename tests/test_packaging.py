"""The wheel: one top-level name, every data file, and a working command line without the training extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
import venv
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.records import Observation, StepRecord
from collapsewatch.store import Store

ROOT = Path(__file__).parents[1]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COLLAPSEWATCH"))}
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, env=CLEAN, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy of what belongs to the package: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("collapsewatch", "trainer", "dashboards", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT / name, source / name)
    built = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source, cwd=folder)
    if built.returncode and "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("no package index to take setuptools from")
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an empty environment with the wheel in it, without extras."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = run(*pip, "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_wheel_has_one_name_and_all_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"collapsewatch"}
    packages = {"collapsewatch": "", "trainer": "trainer/", "dashboards": "dashboards/"}
    tree = {
        f"collapsewatch/{inner}{path.relative_to(ROOT / folder)}"
        for folder, inner in packages.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("collapsewatch/")} == tree
    assert {"collapsewatch/schema.sql", "collapsewatch/py.typed", "collapsewatch/trainer/hermes.jinja"} <= tree
    assert {"collapsewatch/trainer/demo.toml", "collapsewatch/dashboards/assets/collapsewatch.css"} <= tree


def test_without_the_extra_there_is_no_torch_but_help(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "python", "-c", "import torch", cwd=tmp_path).returncode != 0
    outcome = run(installed / "collapsewatch", "--help", cwd=tmp_path)
    assert outcome.returncode == 0 and "analyze" in outcome.stdout and outcome.stderr == ""


def test_without_the_extra_analyze_works(installed: Path, tmp_path: Path) -> None:
    with closing(Store(tmp_path / "logs" / "a")) as store:
        for step in range(1, 41):
            observed = (Observation("truncated", 0.95 if step > 20 else 0.01, 8),)
            store.log_step(StepRecord(step, float(step), {"reward": 0.1 if step > 20 else 0.8}, observed))
    outcome = run(installed / "collapsewatch", "analyze", "logs", "--json", "--fail-on", "collapsed", cwd=tmp_path)
    assert outcome.returncode == 3, outcome.stderr
    (found,) = json.loads(outcome.stdout)["runs"]
    assert (found["name"], found["verdict"], found["onset_step"]) == ("a", "collapsed", 21)
    outcome = run(
        installed / "collapsewatch", "query", "logs/a", "SELECT max(step) AS s FROM steps", "--csv", cwd=tmp_path
    )
    assert outcome.stdout == "s\n40\n"


@pytest.mark.parametrize("command", [("train", "x.toml"), ("demo", "--no-dashboard")])
def test_without_the_extra_training_says_what_to_install(command: Any, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("")
    outcome = run(installed / "collapsewatch", *command, cwd=tmp_path)
    assert outcome.returncode == 2 and outcome.stdout == ""
    told = "expected the training extra: pip install 'collapsewatch[train]'"
    assert re.fullmatch(rf"error: {command[0]}: got no module '\w+', {re.escape(told)}\n", outcome.stderr)


def test_without_the_extra_the_dashboard_serves(installed: Path, tmp_path: Path) -> None:
    server = subprocess.Popen(
        [installed / "collapsewatch", "dashboard", tmp_path, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN | {"PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        for path, held in (("", "collapsewatch"), ("assets/collapsewatch.css", "--"), ("_dash-layout", "tick")):
            with urllib.request.urlopen(url + path, timeout=30) as answer:
                assert answer.status == 200 and held in answer.read().decode()
        server.terminate()
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out, err) == (0, "", "")
    finally:
        server.kill()
        server.wait()
