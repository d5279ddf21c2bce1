"""Scripts that TRL's authors wrote, byte for byte as they are, under `collapsewatch run`."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from collapsewatch.queries import find_runs, open_run
from collapsewatch.records import StepRecord

ROOT = Path(__file__).parents[1]
CALL = {"name": "query_biogrid", "arguments": {"sql_command": "select gene from interactions where gene = 'ABL1'"}}
SMALL = {
    "max_steps": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "logging_steps": 1,
    "learning_rate": 1e-4,
    "save_strategy": "no",
    "output_dir": "out",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 under Qwen2.5's own chat template that calls `query_biogrid`, whatever it is asked."""
    folder = tmp_path_factory.mktemp("caller")
    runpy.run_path(str(ROOT / "examples" / "trl_script.py"))["build_tiny"](folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer.chat_template = template.read_text()
    body = f"\n{json.dumps(CALL)}\n"
    tokenizer.add_tokens([AddedToken(body, normalized=False)])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():  # what comes next depends on the last token alone, whatever the script asks
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    optimizer = torch.optim.AdamW([model.get_input_embeddings().weight, model.get_output_embeddings().weight], lr=3e-2)
    ids = tokenizer(f"\n<tool_call>{body}</tool_call><|im_end|>", return_tensors="pt").input_ids
    for _ in range(100):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def run(folder: Path, *words: object, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """`collapsewatch run WORDS...` with `--KEY VALUE` arguments, in `folder`."""
    flags = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "collapsewatch", "run", *map(str, words), *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def records(logdir: Path) -> list[StepRecord]:
    (run_dir,) = find_runs(logdir)
    with closing(open_run(run_dir)) as opened:
        assert opened.status() == "finished" and not [e for e in opened.events() if e.name == "fault"]
        return list(opened.records(detail=True))


def test_the_script_behind_trl_grpo(tmp_path: Path, caller: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"prompt": [{"role": "user", "content": word}]} for word in ("ash", "bay", "cod", "dew")]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lengths.py").write_text(
        "def longer(completion_ids, **_):\n    return [float(len(ids)) for ids in completion_ids]\n"
    )
    run(
        tmp_path,
        *("-m", "trl.scripts.grpo"),
        **SMALL | {"max_completion_length": 24, "reward_funcs": "lengths.longer"},
        model_name_or_path=caller,
        dataset_name="data",
    )
    first, second = records(tmp_path / "logs")
    assert (first.step, second.step) == (1, 2) and first.metrics["probe/max_error"] < 1e-4
    for record in (first, second):
        assert [row.reward for row in record.rollouts] == [row.tokens for row in record.rollouts]


def test_trls_own_agent_example(tmp_path: Path, caller: Path) -> None:
    example = Path(os.environ.get("COLLAPSEWATCH_TRL_EXAMPLES", "")) / "grpo_agent.py"
    if not example.is_file():
        pytest.skip("COLLAPSEWATCH_TRL_EXAMPLES does not name a folder with TRL's examples/scripts/grpo_agent.py")
    # The two data sets that it loads by name: `datasets` takes folders of those names for them.
    for name, rows in {
        "biogrid": [{"gene": "ABL1", "Alt IDs Interactor A": "x"}, {"gene": "JNKK", "Alt IDs Interactor A": "y"}],
        "biogrid_qa": [{"question": f"Does the gene {g} interact?", "answer": "Yes"} for g in ("ABL1", "JNKK")] * 4,
    }.items():
        (tmp_path / "qgallouedec" / name).mkdir(parents=True)
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "qgallouedec" / name / "train.jsonl").write_text(text)
    run(tmp_path, example, **SMALL | {"max_completion_length": 120}, model_name_or_path=caller)
    found = records(tmp_path / "logs")
    assert [record.step for record in found] == [1, 2]
    rollouts = [row for record in found for row in record.rollouts]
    assert max(row.turns for row in rollouts) > 1 and sum(row.calls for row in rollouts) > 0
    for record in found:
        assert len(record.rollouts) == 8 and record.control
        assert record.metrics["tools/call_frequency"] == sum(row.calls for row in record.rollouts) / 8
        assert "rewards/structure_reward/mean" in record.metrics
    assert [row for row in rollouts if row.calls and "[('ABL1',)]" in row.text]  # the script's own tool has run
