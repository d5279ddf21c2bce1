"""`collapsewatch run`: the script behaves as under `python`, and its GRPO trainings are watched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from collapsewatch.queries import find_runs, open_run

ROOT = Path(__file__).parents[1]
RUN = ("-m", "collapsewatch", "run")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("COLLAPSEWATCH")} | {
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
TRAIN = """
import hashlib, sys
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from rewards import checksum

COMMON = dict(
    learning_rate=1e-3, per_device_train_batch_size=8, seed=7, use_cpu=True, bf16=False, gradient_checkpointing=False,
    save_strategy="no", logging_steps=1, disable_tqdm=True,
)

def grpo(callbacks=(), **settings):
    settings = dict(output_dir="out", report_to=[], max_steps=2) | settings
    return GRPOTrainer(
        model=sys.argv[1],
        reward_funcs=checksum,
        args=GRPOConfig(num_generations=4, max_completion_length=16, **COMMON | settings),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in ("add 1 and 2", "say hi", "look", "what")]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(sys.argv[1]),
        callbacks=list(callbacks),
    )

def sft():
    return SFTTrainer(
        model=sys.argv[1],
        args=SFTConfig(output_dir="sft", report_to=[], max_steps=1, max_length=None, **COMMON),
        train_dataset=Dataset.from_list([{"text": "say hi"}] * 8),
        processing_class=PreTrainedTokenizerFast.from_pretrained(sys.argv[1]),
    )

def weights(trainer):
    state = trainer.model.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
"""
REWARDS = """
def checksum(completion_ids, **_):
    return [sum(i * (1 + t) for t, i in enumerate(ids)) % 97 / 97 for ids in completion_ids]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pieces that scripts in it import."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "pieces.py").write_text(TRAIN)
    (tmp_path / "code" / "rewards.py").write_text(REWARDS)
    return tmp_path


def python(folder: Path, *command: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=folder, env=ENV, capture_output=True, text=True, timeout=timeout)


def script(folder: Path, text: str) -> Path:
    path = folder / "code" / "script.py"
    path.write_text(text)
    return Path("code") / "script.py"


def steps(run_dir: Path) -> list[int]:
    with closing(open_run(run_dir)) as run:
        assert run.status() == "finished"
        records = list(run.records(detail=True))
    for record in records:
        assert len(record.rollouts) == 8 and record.control and "hazard" in record.metrics
        assert not any(event.name == "fault" for event in open_run(run_dir).events())
    return [record.step for record in records]


def test_an_unmodified_script_is_watched_and_trains_the_same_weights(folder: Path, model_path: Path) -> None:
    path = script(folder, "import pieces as p\ntrainer = p.grpo()\ntrainer.train()\nprint(p.weights(trainer))")
    plain = python(folder, path, model_path)
    assert plain.returncode == 0, plain.stderr
    watched = python(folder, *RUN, "--logdir", "kept", "--name", "one", path, model_path)
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.splitlines()[-1] == plain.stdout.splitlines()[-1] != ""
    assert f"collapsewatch: GRPOTrainer is watched, run {folder / 'kept' / 'one'}\n" in watched.stderr
    assert [path.name for path in find_runs(folder / "kept")] == ["one"] and steps(folder / "kept" / "one") == [1, 2]


def test_every_training_is_a_run_and_other_trainers_are_left_alone(folder: Path, model_path: Path) -> None:
    text = """
        import pieces as p
        class Own(p.GRPOTrainer):
            pass
        p.sft().train()
        p.GRPOTrainer = Own
        trainer = p.grpo()
        trainer.train()
        trainer.train()
        from collapsewatch import CollapseCallback
        p.grpo([CollapseCallback("logs", "own")]).train()
        p.grpo(report_to="collapsewatch", max_steps=1).train()
    """
    done = python(folder, *RUN, "--name", "r", script(folder, re.sub("^ {8}", "", text, flags=re.M)), model_path)
    assert done.returncode == 0, done.stderr
    assert {path.name: len(steps(path)) for path in find_runs(folder / "logs")} == {
        "r": 2,
        "r-2": 2,
        "own": 2,
        "r-3": 1,
    }
    said = [line for line in done.stderr.splitlines() if line.startswith("collapsewatch")]
    assert said == [
        "collapsewatch: SFTTrainer is not watched, for it is no GRPO trainer",
        f"collapsewatch: Own is watched, run {folder / 'logs' / 'r'}",
        f"collapsewatch: Own is watched, run {folder / 'logs' / 'r-2'}",
        f"collapsewatch: Own is watched, run {folder / 'logs' / 'r-3'}",
    ]


def test_report_to_names_the_monitor_and_the_environment_sets_it(
    folder: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import pieces as p, collapsewatch.watch\np.grpo(report_to='collapsewatch').train()"
    settings = {"LOGDIR": "here", "NAME": "asked", "FORMAT": "hermes", "FA_PER_10K": "7"}
    for name, value in settings.items():
        monkeypatch.setitem(ENV, f"COLLAPSEWATCH_{name}", value)
    done = python(folder, script(folder, text), model_path)
    assert done.returncode == 0, done.stderr
    assert steps(folder / "here" / "asked") == [1, 2]
    with closing(open_run(folder / "here" / "asked")) as run:
        assert '"fa_per_10k": 7.0' in next(event.detail for event in run.events() if event.name == "started")
    monkeypatch.setitem(ENV, "COLLAPSEWATCH_FA_PER_10K", "few")
    done = python(folder, script(folder, text), model_path)
    assert done.returncode == 1 and "FA_PER_10K: got 'few', expected a number" in done.stderr


@pytest.mark.slow
def test_two_processes_are_one_run(folder: Path, model_path: Path) -> None:
    path = script(folder, "import pieces as p\np.grpo(per_device_train_batch_size=4).train()")
    # `--multi_gpu` is how accelerate starts several processes; the script's `use_cpu` makes them gloo's.
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0)
    done = python(folder, *launcher, *RUN, "--name", "two", path, model_path)
    assert done.returncode == 0, done.stderr
    with closing(open_run(folder / "logs" / "two")) as run:
        assert run.status() == "finished" and not [e for e in run.events() if e.name == "fault"]
        records = list(run.records(detail=True))
        ranks = run.query("SELECT rank, count(*) FROM rollouts GROUP BY rank ORDER BY rank").rows
    assert [record.step for record in records] == [1, 2] and ranks == [(0, 8), (1, 8)]
    assert len(re.findall("is watched", done.stderr)) == 1


BEHAVES = {
    "what it sees": """
        import sys, os, rewards
        print(sys.argv, __name__, __file__, sys.path[0], __package__, __spec__, rewards.__file__, os.getcwd())
        print(sorted({"numpy", "torch", "transformers", "trl", "duckdb"} & set(sys.modules)))
        print(sys.modules["__main__"].__dict__ is globals(), sorted(globals()))
    """,
    "exit code": "import sys; sys.exit(3)",
    "exit message": "import sys; sys.exit('not today')",
    "exit at once": "import os; os._exit(5)",
    "traceback": """
        def inner():
            return 1 / 0
        def outer():
            try:
                inner()
            except ZeroDivisionError as error:
                raise KeyError("ü") from error
        outer()
    """,
    "syntax error": "print('no'\n",
    "ctrl-c": "raise KeyboardInterrupt",
    "sigterm": "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')",
    "sigint": "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')",
    "broken import": "import nonesuch",
    "no main, no run": "if __name__ == '__main__':\n    print('main')",
    "exit handlers": "import atexit\nWORD = 'kept'\natexit.register(lambda: print(WORD))",
    "a thread that goes on": """
        import threading, time
        WORD = "kept"
        def late():
            time.sleep(0.3)
            print(WORD)
        threading.Thread(target=late).start()
    """,
    "spawned processes": """
        import multiprocessing
        def double(x):
            return 2 * x
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                print(pool.map(double, [1, 2, 3]))
    """,
    "pickles": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "own hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\nraise ValueError",
    "hook called by hand": """
        import sys
        try:
            1 / 0
        except ZeroDivisionError:
            sys.excepthook(*sys.exc_info())
    """,
    "a shown source": "import inspect\ndef f(): pass\nprint(inspect.getsource(f))",
    "an encoding": "# -*- coding: latin-1 -*-\nprint(ascii('ü'))",
}


@pytest.mark.parametrize("text", BEHAVES.values(), ids=BEHAVES)
def test_a_script_behaves_as_under_python(folder: Path, text: str) -> None:
    path = script(folder, re.sub("^ {8}", "", text, flags=re.M))
    plain, run = (
        python(folder, path, "--help", "-x", "--", "--logdir"),
        python(folder, *RUN, path, "--help", "-x", "--", "--logdir"),
    )
    assert (run.returncode, run.stdout) == (plain.returncode, plain.stdout)
    said = f"collapsewatch: nothing was watched, for {path} trained with no GRPO trainer\n"
    assert run.stderr == plain.stderr + (said if plain.returncode == 0 else "")


def test_a_module_runs_as_under_python(folder: Path) -> None:
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").write_text("")
    (folder / "pkg" / "word.py").write_text("WORD = 'near'")
    (folder / "pkg" / "main.py").write_text(
        "import sys\nfrom .word import WORD\nprint(WORD, sys.argv, __name__, __package__, sys.path[0])\n1 / 0"
    )
    plain, run = python(folder, "-m", "pkg.main", "-m", "1"), python(folder, *RUN, "-m", "pkg.main", "-m", "1")
    assert (run.returncode, run.stdout) == (plain.returncode, plain.stdout) and "near" in run.stdout
    assert re.sub(r'  File "<frozen runpy>".*\n', "", plain.stderr) == run.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonesuch.py"], "script: got 'nonesuch.py', expected a Python file"),
        (["code"], "script: got 'code', expected a Python file"),
        (["--format", "nonesuch", "code/rewards.py"], "expected one of"),
        (["--fa-per-10k", "0", "code/rewards.py"], "--fa-per-10k: got 0.0, expected more than 0"),
        ([], "script"),
    ],
)
def test_what_cannot_be_run_is_one_line(folder: Path, words: list[str], said: str) -> None:
    done = python(folder, *RUN, *words)
    assert done.returncode == 2 and done.stdout == "" and said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
