"""The command line: help, one line for every wrong input, strict output formats, and what an interrupt leaves."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from collapsewatch.cli import app, main
from collapsewatch.queries import Run, RunError, open_run
from collapsewatch.records import Event, Observation, RolloutRow, StepRecord
from collapsewatch.store import Store

COMMANDS = get_command(app).commands
HOSTILE = '[red]x[/red] \x1b[31m\x1b]0;owned\x07 \u202e"quoted", \r\n=1+1 \U0001f600'


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run `collapsewatch ARGS...` in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["collapsewatch", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, handler)


def is_refusal(outcome: Outcome, *said: str) -> None:
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    for words in said:
        assert words in outcome.err, outcome.err


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: `fine`, and `broken`, whose turns are all cut off from step 31 on; hostile text in both."""
    folder = tmp_path_factory.mktemp("logs")
    for name, onset in (("fine", 99), ("broken", 31)):
        with closing(Store(folder / name)) as store:
            for step in range(1, 61):
                cut = 0.95 if step >= onset else 0.01
                metrics = {"reward": 0.8 - 0.79 * (step >= onset) + 0.01 * (step % 3), "loss": math.nan, HOSTILE: 1.0}
                rollout = RolloutRow(0, 0, math.nan, 0.0, 1, 3, 0, 0, "response", 0.0, HOSTILE, HOSTILE)
                observed = (Observation("truncated", cut, 8),)
                store.log_step(StepRecord(step, float(step), metrics, observed, rollouts=(rollout,)))
            store.log_event(Event(60, 61.0, "finished"))
    return folder


# -- help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_its_options(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert COMMANDS[name].help and COMMANDS[name].help.split(".")[0] in outcome.out
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name}: {parameter.name} has no help"
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option.lower() in outcome.out.lower()


def test_without_a_command_the_help_is_shown(command: Command) -> None:
    outcome = command()
    assert outcome.code == 2 and outcome.err == "" and all(name in outcome.out for name in COMMANDS)


def test_the_version_is_the_packages(command: Command) -> None:
    from collapsewatch import __version__

    assert command("--version") == (0, f"collapsewatch {__version__}\n", "")


def test_help_is_quick_to_load() -> None:
    code = "import sys, collapsewatch.cli; print(*{'torch', 'dash', 'duckdb', 'pyarrow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


# -- wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["query"], "Missing argument"),
        (["query", "x", "y", "--yaml"], "No such option: --yaml"),
        (["demo", "--seed", "one"], "--seed"),
        (["demo", "--seed", "-1"], "--seed"),
        (["analyze", "x", "--fail-on", "never"], "got 'never', expected one of collapsed, degraded"),
        (["analyze", "x", "--follow"], "no such path"),
        (["analyze", "x", "--map", "rewards"], "--map: got 'rewards', expected COLUMN=NAME"),
        (["analyze", "x", "--map", "r=rewrad"], "did you mean 'reward'?"),
        (["analyze", "x", "--aliases", "nowhere"], "No such file or directory"),
        (["analyze", "x", "--html", "."], "got the folder '.'"),
        (["analyze", "x", "--html", "no/such/folder.html"], "expected it in a folder that exists"),
        (["analyze", "x"], "no such path"),
        (["query", "x", "SELECT 1"], "which does not exist"),
        (["query", "x", "SELECT 1", "--json", "--csv"], "expected one of them"),
        (["dashboard", "x"], "expected a folder that holds runs"),
        (["train", "x.toml"], "expected a readable TOML file"),
    ],
)
def test_a_wrong_input_is_one_line(args: list[str], said: str, command: Command, tmp_path: Path) -> None:
    is_refusal(command(*[tmp_path / arg if arg in ("x", "x.toml") else arg for arg in args]), said)


def test_an_empty_log_folder_is_one_line(command: Command, tmp_path: Path) -> None:
    is_refusal(command("analyze", tmp_path), "with no run in it", "trainer_state")
    is_refusal(command("query", tmp_path, "SELECT 1"), "expected a folder with run.duckdb")


def test_a_folder_of_unknown_files_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    is_refusal(command("analyze", tmp_path), "with no run in it")
    is_refusal(command("analyze", tmp_path / "noise.bin"), "expected a log of one of")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("learning_rat = 1", "did you mean 'learning_rate'?"),
        ("steps = 'ten'", "steps: got 'ten' (str), expected int"),
        ("steps = ", "expected valid TOML"),
        ("steps = 0", "steps: got 0, expected at least 1"),
        ("model = 'no/such/model'", "model: got 'no/such/model'"),
        ("model = 'no.gguf'", "model: got 'no.gguf'"),
        ("model = '{broken}'", "expected 'tiny', a model folder, a hub name or a .gguf file"),
        ("environment = 'chian'", "environment: got 'chian', expected one of bfcl, bfcl_base"),
        ("environment = 'os:nothing'", "environment: got 'os:nothing', which does not load"),
        ("chat_format = 'x'", "chat format: got 'x', expected one of "),
        ("intervention = 'prayer'", "got 'prayer', expected one of "),
        ("logdir = '{file}'", "expected a folder to write to"),
    ],
)
def test_a_config_that_cannot_be_trained_is_one_line(knobs: str, said: str, command: Command, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "qwen2"')
    (tmp_path / "file").write_text("")
    path = tmp_path / "train.toml"
    path.write_text(knobs.format(broken=broken, file=tmp_path / "file"))
    logs = () if "logdir" in knobs else ("--set", f"logdir={tmp_path / 'logs'}")
    is_refusal(command("train", path, *logs), said)
    assert not (tmp_path / "logs" / "run").exists()


def test_a_demo_that_cannot_write_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    is_refusal(command("demo", "--no-dashboard", "--out", tmp_path / "file"), "--out: got", "folder to write to")


@pytest.mark.parametrize("name", ["demo", "dashboard"])
def test_a_taken_port_is_one_line(name: str, command: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ("--out", tmp_path) if name == "demo" else (tmp_path,)
        is_refusal(command(name, *where, "--port", port), f"--port: got {port}", "--port 0")


def test_a_dashboard_for_strangers_is_one_line(command: Command, tmp_path: Path) -> None:
    refused = command("dashboard", tmp_path, "--host", "0.0.0.0", "--auth-token", "short")
    is_refusal(refused, "--auth-token: got 5 characters", "at least 12")


@pytest.mark.parametrize(
    "sql", ["SELEC 1", "SELECT nothing FROM steps", "DROP TABLE steps", "SELECT 1; SELECT 2", "", "COPY steps TO 'x'"]
)
def test_a_wrong_query_is_one_line(sql: str, command: Command, logdir: Path) -> None:
    is_refusal(command("query", logdir / "fine", sql), "query: ")


# -- query -----------------------------------------------------------------------------------------------------

SQL = """
SELECT step, 'nan'::DOUBLE AS nan, '-inf'::DOUBLE AS low, NULL AS none, text, [0.5, 'nan'::DOUBLE] AS list, true AS yes
FROM rollouts ORDER BY step LIMIT 3
"""


def test_query_json_is_strict_and_complete(command: Command, logdir: Path) -> None:
    outcome = command("query", logdir / "fine", SQL, "--json")
    assert outcome.code == 0 and outcome.err == ""
    assert strict(outcome.out) == [
        {"step": i, "nan": "nan", "low": "-inf", "none": None, "text": HOSTILE, "list": [0.5, "nan"], "yes": True}
        for i in (1, 2, 3)
    ]


def test_query_json_refuses_to_drop_a_column(command: Command, logdir: Path) -> None:
    is_refusal(command("query", logdir / "fine", "SELECT 1 AS a, 2 AS a", "--json"), "expected distinct names")


def test_query_csv_survives_a_csv_reader(command: Command, logdir: Path) -> None:
    outcome = command("query", logdir / "fine", SQL, "--csv")
    header, *rows = csv.reader(io.StringIO(outcome.out, newline=""))
    assert header == ["step", "nan", "low", "none", "text", "list", "yes"]
    assert rows == [[str(i), "nan", "-inf", "", HOSTILE, "[0.5, nan]", "True"] for i in (1, 2, 3)]


def test_a_table_shows_hostile_text_and_obeys_none_of_it(command: Command, logdir: Path) -> None:
    outcome = command("query", logdir / "fine", SQL)
    assert "[red]x[/red]" in outcome.out and "\\x1b[31m" in outcome.out and "\\u202e" in outcome.out
    assert all(char.isprintable() or char == "\n" for char in outcome.out)
    header, *rows = outcome.out.splitlines()
    assert header.split() == ["step", "nan", "low", "none", "text", "list", "yes"] and len(rows) == 3


def test_an_empty_answer_still_has_its_columns(command: Command, logdir: Path) -> None:
    sql = "SELECT step, time FROM steps WHERE false"
    assert command("query", logdir / "fine", sql).out.split() == ["step", "time"]
    assert strict(command("query", logdir / "fine", sql, "--json").out) == []
    assert command("query", logdir / "fine", sql, "--csv").out == "step,time\n"


def test_a_summary_into_a_closed_pipe_is_no_error(logdir: Path) -> None:
    analyze = subprocess.Popen(
        [sys.executable, "-m", "collapsewatch", "analyze", *[str(logdir)] * 3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert analyze.stdout is not None and analyze.stderr is not None
    analyze.stdout.close()
    with analyze.stderr:
        assert analyze.stderr.read() == ""
    assert analyze.wait(60) == 0


def test_a_closed_pipe_is_no_error(logdir: Path) -> None:
    sql = "SELECT i FROM range(200000) AS r(i)"
    query = subprocess.Popen(
        [sys.executable, "-m", "collapsewatch", "query", str(logdir / "fine"), sql, "--csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert query.stdout is not None and query.stderr is not None
    assert [query.stdout.readline() for _ in range(2)] == ["i\n", "0\n"]
    query.stdout.close()
    with query.stderr:
        assert query.stderr.read() == ""
    query.wait(20)


# -- analyze ---------------------------------------------------------------------------------------------------


def test_analyze_json_is_strict_and_names_the_broken_run(command: Command, logdir: Path) -> None:
    outcome = command("analyze", logdir, "--json")
    assert outcome.code == 0 and outcome.err == ""
    runs = {run["name"]: run for run in strict(outcome.out)["runs"]}
    assert set(runs) == {"fine", "broken"} and runs["fine"]["verdict"] == "healthy"
    assert (runs["broken"]["verdict"], runs["broken"]["onset_step"]) == ("collapsed", 31)
    assert runs["broken"]["steps"] == {"first": 1, "last": 60, "count": 60}


@pytest.mark.parametrize(
    ("run", "level", "code"),
    [("fine", "degraded", 0), ("fine", "collapsed", 0), ("broken", "collapsed", 3), ("broken", "degraded", 3)],
)
def test_fail_on_sets_the_exit_code(run: str, level: str, code: int, command: Command, logdir: Path) -> None:
    assert command("analyze", logdir / run, "--fail-on", level).code == code


def test_a_pipe_gets_the_whole_table_and_no_colours(
    command: Command, logdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")  # a file, a pipe, a CI log
    outcome = command("analyze", logdir)
    assert re.search(
        r"broken +collapsed +31 +31 +60 +length_runaway, turns cut .* first +0.81 / 0.81 / 0.02", outcome.out
    )
    assert "\x1b" not in outcome.out


def test_columns_are_named_one_by_one_or_in_a_file(command: Command, tmp_path: Path) -> None:
    rows = ["it,a=b,score"] + [f"{t},{0.95 if t > 40 else 0.01},{0.0 if t > 40 else 0.8}" for t in range(1, 81)]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (tmp_path / "names").write_text('# ours\n"a=b" = completions/clipped_ratio\n\nscore = accuracy\n')
    (tmp_path / "names.json").write_text('{"a=b": "completions/clipped_ratio"}')
    one = [part for pair in ("it=step", "a=b=completions/clipped_ratio") for part in ("--map", pair)]
    for options in (one, [*one[:2], "--aliases", tmp_path / "names"], [*one[:2], "--aliases", tmp_path / "names.json"]):
        outcome = command("analyze", tmp_path / "log.csv", "--map", "score=reward", *options, "--json")
        (run,) = strict(outcome.out)["runs"]
        assert (run["verdict"], run["onset_step"], run["unmapped"]) == ("collapsed", 41, [])
        assert run["reward"]["last"] == 0.0  # what is said one by one counts


def test_the_page_is_written_beside_the_summary_or_the_json(command: Command, logdir: Path, tmp_path: Path) -> None:
    page = tmp_path / "a b\u00e9'\".html"
    assert command("analyze", logdir, "--html", page).code == 0
    assert "1 of 2 runs broke" in page.read_text()
    strict(command("analyze", logdir, "--html", page, "--json").out)
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_one_line(command: Command, logdir: Path) -> None:
    is_refusal(command("analyze", logdir, "--html", "/dev/full"), "--html: got '/dev/full' (No space left on device)")
    assert Path("/dev/full").is_char_device()


def test_a_followed_log_is_judged_again_when_it_grows(tmp_path: Path) -> None:
    log = tmp_path / "run" / "train.jsonl"
    log.parent.mkdir()

    def write(first: int, last: int) -> None:
        with log.open("a") as file:
            for step in range(first, last):
                row = {"step": step, "reward": 0.8, "completions/clipped_ratio": 0.95 if step > 40 else 0.01}
                file.write(json.dumps(row) + "\n")

    with start(tmp_path, "analyze", log.parent, "--follow", "--json", "--fail-on", "collapsed") as watching:
        try:
            assert watching.stdout is not None and watching.stderr is not None
            assert watching.stderr.readline().startswith("no run yet")
            write(1, 41)
            assert strict(watching.stdout.readline())["runs"][0]["verdict"] == "healthy"
            write(41, 45)
            write(45, 81)
            out, err = watching.communicate(timeout=60)
            assert strict(out.splitlines()[-1])["runs"][0]["verdict"] == "silent"
            assert (watching.returncode, err) == (3, "")
        finally:
            watching.kill()


def test_following_ends_by_an_interrupt(logdir: Path, tmp_path: Path) -> None:
    with start(tmp_path, "analyze", logdir / "broken", "--follow") as watching:
        try:
            assert watching.stdout is not None
            assert "collapsed" in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate(timeout=60)
            assert (watching.returncode, err) == (130, "interrupted\n")
        finally:
            watching.kill()


def test_untrusted_transcripts_reach_the_terminal_as_visible_text(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"model": HOSTILE, "text": f"<tool_call>{HOSTILE}", HOSTILE: 1}
    path.write_text(f"{HOSTILE!r}\n" * 2 + json.dumps(row) + "\n" + HOSTILE.replace("\r\n", ""))
    outcome = command("analyze", path)
    assert outcome.code == 0 and outcome.err == ""
    assert all(char.isprintable() for char in outcome.out.replace("\n", ""))
    assert "<tool_call>[red]x[/red] \\x1b[31m" in outcome.out and "3 of 4 lines left out" in outcome.out
    (run,) = strict(command("analyze", path, "--json").out)["runs"]
    assert run["structure"]["reasons"][0]["examples"] == [{"line": 3, "text": f"<tool_call>{HOSTILE}"}]


# -- interrupts ------------------------------------------------------------------------------------------------

ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGKILL: (-9, "stopped")}


def steps_of(run_dir: Path) -> int:
    """The last step a reader sees; 0 while there is no run."""
    with suppress(RunError), closing(open_run(run_dir)) as run:
        return run.last_step() or 0
    return 0


def until(condition: Callable[[], bool], alive: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert alive.poll() is None, f"ended with {alive.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


# As `python -m collapsewatch`, but a test that runs as a shell's background job was told to ignore SIGINT.
RUN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import collapsewatch.__main__"


def start(cache: Path, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLLAPSEWATCH_CACHE": str(cache)},
    )


def test_an_interrupted_training_stays_readable(tmp_path: Path, command: Command) -> None:
    config = tmp_path / "train.toml"
    config.write_text("warm_start = 0\nsteps = 2000\nprompts = 1\nrollouts = 2\nmax_turn_tokens = 4\nmax_turns = 1\n")
    trainings = {
        sent: start(tmp_path, "train", config, "--set", f"logdir={tmp_path}", "--set", f"name={sent.name}")
        for sent in ENDS
    }
    for sent, training in trainings.items():
        run_dir = tmp_path / sent.name
        until(lambda run_dir=run_dir: steps_of(run_dir) >= 2, training)
        seen = steps_of(run_dir)
        training.send_signal(sent)
        _, err = training.communicate(timeout=60)
        code, status = ENDS[sent]
        assert training.returncode == code and err == ("interrupted\n" if code == 130 else ""), err
        with closing(open_run(run_dir)) as run:
            assert run.status() == status
            steps = [record.step for record in run.records()]
            assert len(steps) >= seen and steps == list(range(1, len(steps) + 1))  # nothing seen is lost
            assert run.query("SELECT count(*) FROM rollouts").rows == [(2 * len(steps),)]
        assert command("query", run_dir, "SELECT max(step) FROM steps", "--csv").out.split() == [
            "max(step)",
            str(len(steps)),
        ]
    names = {run["name"] for run in strict(command("analyze", tmp_path, "--json").out)["runs"]}
    assert names == {sent.name for sent in ENDS}


@pytest.mark.slow
def test_an_interrupted_demo_closes_both_runs(tmp_path: Path) -> None:
    from collapsewatch.trainer.config import load_config
    from collapsewatch.trainer.demo import ARMS, CONFIG
    from collapsewatch.trainer.environments import load_environment
    from collapsewatch.trainer.models import _fingerprint, tiny_model, tiny_tokenizer

    # An untrained model in the cache: what the demo shows does not matter here, and a warm start takes long.
    config = load_config(CONFIG)
    environment = load_environment(config.environment)
    cached = tmp_path / f"tiny-{_fingerprint(environment, 0, config.warm_start)}"
    tiny_model(tiny_tokenizer(environment), 0).save_pretrained(cached)
    demo = start(tmp_path, "demo", "--no-dashboard", "--seed", 0, "--out", tmp_path)
    runs = [tmp_path / "demo-seed0" / name for name in ARMS]
    until(lambda: all(steps_of(run_dir) >= 1 for run_dir in runs), demo)
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == 130 and err == "interrupted\n", out + err
    for run_dir in runs:
        with closing(open_run(run_dir)) as run:
            assert isinstance(run, Run) and run.status() == "interrupted" and run.last_step()
