"""Logs of trainers other than TRL and verl, written by hand as their own code writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collapsewatch.importers import Imported, NoTraining, runs
from tests.written import LOGS, fails_in_one_way_only, metric, put, read


def openrlhf(steps: range) -> str:
    """`logger.info` of `ppo_trainer.py` (0.11) in `logging_utils.NewLineFormatter`'s format, as Ray prints it."""
    said = ["(PPOTrainer pid=812) INFO 11-25 18:00:01 ppo_trainer.py:224] Sample: ['user\\nhi', 0.5]"]
    for step in steps:
        status = {
            "policy_loss": -0.01,
            "entropy_loss": 0.5,
            "actor_lr": 1e-6,
            "actor_grad_norm": 0.25,
            "reward": step / 10,
            "return": 0.0,
            "kl": 0.001,
            "response_length": 120.0,
            "truncated": 0.125,
            "total_length": 300.0,
            "timing/make_experience": 3.0,
            "rollout/reward_mean": step / 10,
            "rollout/reward_std": 0.5,
            "rollout/response_length_mean": 120.0,
            "rollout/truncated_rate": 0.125,
            "rollout/num_samples": 128.0,
        }
        said.append(f"(PPOTrainer pid=812) INFO 11-25 18:00:01 ppo_trainer.py:551] ✨ Global step {step}: {status}")
        said.append(
            f"(PPOTrainer pid=812) INFO 11-25 18:00:02 ppo_trainer.py:598] global_step {step}, eval_metrics: {{}}"
        )
    return "\n".join(said) + "\n"


def test_openrlhf_s_console_has_a_dict_per_global_step(tmp_path: Path) -> None:
    (run,) = read(put(tmp_path / "my_run.log", openrlhf(range(1, 8))))
    assert (run.name, run.source, run.unmapped, run.faults) == ("my_run", "openrlhf", (), ())
    assert metric(run, "reward") == {step: step / 10 for step in range(1, 8)}
    expected = {"entropy": 0.5, "loss": -0.01, "kl": 0.001, "grad_norm": 0.25, "reward_std": 0.5}
    expected |= {"completions/mean_length": 120.0, "completions/clipped_ratio": 0.125, "learning_rate": 1e-6}
    assert run.records[0].metrics | expected == run.records[0].metrics
    assert [(o.stream, o.value) for o in run.records[0].observations] == [("truncated", 0.125)]


def test_a_global_step_of_tensors_and_nan_is_read(tmp_path: Path) -> None:
    lines = "Global step 1: {'reward': tensor(0.5), 'kl': nan}\nGlobal step 2: {'reward': 0.25, 'kl': 0.5}\n"
    (run,) = read(put(tmp_path / "a.out", lines))
    assert metric(run, "reward") == {1: 0.5, 2: 0.25} and metric(run, "kl") == {2: 0.5}


def nemo(steps: range, dynamic: bool = False) -> str:
    """What `grpo_train` of `nemo_rl/algorithms/grpo.py` prints."""
    said = []
    for step in steps:
        rewards = f"  • Avg Filtered Reward: 9.0\n  • Avg Total Reward: {step / 10:.4f}"
        said.append(
            f"\n{'=' * 25} Step {step}/7 {'=' * 25}\n▶ Generating responses...\n"
            "\n📊 Validation Results:\n    • Accuracy: 0.7000\n    • Average response length: 99.0 tokens\n"
            "\n📊 Training Results:\n  • Loss: 0.0123\n  • Generation KL Error: 0.0010\n"
            f"{rewards if dynamic else f'  • Avg Reward: {step / 10:.4f}'}\n"
            "  • Mean Generation Length: 201.2197\n\n⏱️  Timing:\n  • Total step time: 35.70s\n"
            "  • policy_training: 10.97s (30.7%)\n\n🔍 Performance Metrics:\n"
            "  • Mean Total Tokens per Sample: 204.01\n    - E2E (Samples/sec/gpu): 3.59"
        )
    return "\n".join(said) + "\n"


@pytest.mark.parametrize("dynamic", [False, True])
def test_nemo_rl_s_console_has_results_below_each_step(dynamic: bool, tmp_path: Path) -> None:
    (run,) = read(put(tmp_path / "ray-driver.log", nemo(range(1, 8), dynamic)))
    assert (run.name, run.source, run.unmapped) == ("ray-driver", "nemo_rl", ())
    assert metric(run, "reward") == {step: step / 10 for step in range(1, 8)}
    assert run.records[0].metrics == {
        "reward": 0.1,
        "loss": 0.0123,
        "completions/mean_length": 201.2197,
        "step_time": 35.7,
    }


def test_nemo_rl_s_steps_go_on_over_epochs_and_resumed_ones_keep_their_number(tmp_path: Path) -> None:
    (run,) = read(put(tmp_path / "a.log", nemo(range(5, 8)) + nemo(range(1, 4))))
    assert metric(run, "reward") == {5: 0.5, 6: 0.6, 7: 0.7, 8: 0.1, 9: 0.2, 10: 0.3}


def tinker(steps: range) -> str:
    """`metrics.jsonl` of `tinker_cookbook/rl/train.py` (0.6), with evaluations in lines of their own."""
    rows = []
    for step in steps:
        rows.append(
            {"step": step, "progress/batch": step, "optim/lr": 1e-5, "progress/done_frac": 0.1, "time/total": 2.0}
            | {"env/all/ac_tokens_per_turn": 80.0, "env/all/turns_per_episode": 2.5, "env/all/total_episodes": 64}
            | {"env/all/reward/total": step / 10, "env/math/reward/total": 9.0, "env/all/correct": 0.5}
            | {"env/all/by_group/frac_mixed": 0.75, "env/all/by_group/frac_all_bad": 0.25, "optim/entropy": 0.4}
        )
        rows.append({"step": step, "test/env/all/reward/total": 0.9})
    return "\n".join(map(json.dumps, rows)) + "\n"


def test_tinker_s_metrics_are_those_over_all_environments(tmp_path: Path) -> None:
    (run,) = read(put(tmp_path / "my_run" / "metrics.jsonl", tinker(range(7))))
    assert (run.name, run.source, run.unmapped) == ("my_run", "tinker", ())
    assert metric(run, "reward") == {step: step / 10 for step in range(7)}
    expected = {"frac_reward_zero_std": 0.25, "turns": 2.5, "completions/mean_length": 80.0, "accuracy": 0.5}
    expected |= {"entropy": 0.4, "learning_rate": 1e-5, "step_time": 2.0}
    assert run.records[0].metrics | expected == run.records[0].metrics


@pytest.mark.skipif(not LOGS.exists(), reason="needs the shared logs")
def test_a_real_log_of_tinker_is_mapped_whole() -> None:
    (run,) = runs(LOGS / "tinker_code_run2")
    assert isinstance(run, Imported)
    assert (run.source, len(run.records), run.unmapped) == ("tinker", 50, ())
    assert {"reward", "accuracy", "parse_rate", "loss"} <= run.records[0].metrics.keys()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.log", openrlhf(range(1, 5))), ("b.log", nemo(range(1, 5))), ("metrics.jsonl", tinker(range(5)))],
    ids=["openrlhf", "nemo_rl", "tinker"],
)
def test_a_broken_log_fails_in_one_way_only(name: str, content: str, tmp_path: Path) -> None:
    fails_in_one_way_only(tmp_path / name, content.encode())


def test_a_step_without_numbers_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(NoTraining):
        read(put(tmp_path / "a.log", "Global step 1: {'policy_loss': 0.5}\n"))
