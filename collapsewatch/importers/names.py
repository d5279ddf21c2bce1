"""Every source's names for the metrics that TRL names.

To teach a name to all importers, add it to its source's table. In a table, of two names for one metric that stand
in one row, the upper one counts.
"""

from __future__ import annotations

CANONICAL = frozenset(
    {"entropy", "epoch", "frac_reward_zero_std", "grad_norm", "kl", "learning_rate", "loss", "num_tokens", "reward"}
    | {"reward_std", "step_time", "completions/clipped_ratio", "completions/max_length", "completions/mean_length"}
    | {"completions/min_length", "clip_ratio/region_mean", "tools/call_frequency", "tools/failure_frequency"}
    # What TRL has no name for. A rate is a share of the rollouts.
    | {"accuracy", "empty_rate", "parse_rate", "ppo_kl", "repetition_rate", "turns"}
)
FAMILIES = ("clip_ratio/", "completions/", "environment/", "profiling/", "rewards/", "sampling/")
"""Whole families of TRL's names."""

_VERL = {
    "critic/score/mean": "reward",  # without the KL penalty, as TRL's
    "critic/rewards/mean": "reward",
    "actor/entropy": "entropy",
    "actor/entropy_loss": "entropy",
    "actor/grad_norm": "grad_norm",
    "actor/kl_loss": "kl",
    "critic/kl": "kl",
    "actor/ppo_kl": "ppo_kl",
    "actor/loss": "loss",
    "actor/pg_loss": "loss",
    "actor/lr": "learning_rate",
    "actor/pg_clipfrac": "clip_ratio/region_mean",
    "response_length/mean": "completions/mean_length",
    "response_length/max": "completions/max_length",
    "response_length/min": "completions/min_length",
    "response_length/clip_ratio": "completions/clipped_ratio",
    "response/aborted_ratio": "empty_rate",
    "num_turns/mean": "turns",
    "tool_call_counts/mean": "tools/call_frequency",
    "timing_s/step": "step_time",
    "perf/time_per_step": "step_time",
}
_TINKER = {
    "env/all/reward/total": "reward",
    "env/all/correct": "accuracy",
    "mean_correct": "accuracy",
    "env/all/format": "parse_rate",
    "format_rate": "parse_rate",
    "env/all/ac_tokens_per_turn": "completions/mean_length",
    "env/all/turns_per_episode": "turns",
    "optim/entropy": "entropy",
    "optim/lr": "learning_rate",
    "kl_policy_base": "kl",
    "loss:sum": "loss",
    "time/total": "step_time",
    "time/step_s": "step_time",
}
_OPENRLHF = {
    "rollout/response_length_mean": "completions/mean_length",
    "response_length": "completions/mean_length",
    "policy_loss": "loss",
    "act_loss": "loss",
    "actor_lr": "learning_rate",
    "actor_grad_norm": "grad_norm",
    "entropy_loss": "entropy",
    "ppo_clip_ratio": "clip_ratio/region_mean",
    "truncated": "completions/clipped_ratio",
    "truncation": "completions/clipped_ratio",
}
_NEMO_RL = {
    "total_reward/mean": "reward",
    "approx_entropy": "entropy",
    "kl_penalty": "kl",
    "mean_gen_tokens_per_sample": "completions/mean_length",
    "gen_tokens_per_sample/mean": "completions/mean_length",
    "truncation_rate": "completions/clipped_ratio",
    "avg_turns_per_sample": "turns",
    "turns_per_sample/mean": "turns",
}
_SLIME = {
    "rollout/raw_reward": "reward",
    "rollout/raw_reward/mean": "reward",
    "rollout/response_len/mean": "completions/mean_length",
    "rollout/response_lengths": "completions/mean_length",
    "rollout/truncated_ratio": "completions/clipped_ratio",
    "rollout/repetition_frac": "repetition_rate",
    "train/entropy_loss": "entropy",
    "train/kl_loss": "kl",
    "train/pg_loss": "loss",
}
_GENERIC = {
    "completion_length": "completions/mean_length",  # TRL before 0.16
    "clipped_ratio": "completions/clipped_ratio",
    "mean_reward": "reward",
    "reward_mean": "reward",
    "reward/mean": "reward",
    "reward/all/mean": "reward",
    "avg_reward": "reward",
    "total_reward": "reward",
    "r_total": "reward",
    "train_reward": "reward",
    "rlhf_reward": "reward",
    "episode_reward": "reward",
    "reward/std": "reward_std",
    "std_reward": "reward_std",
    "frac_zero_std": "frac_reward_zero_std",
    "mean_entropy": "entropy",
    "policy_entropy": "entropy",
    "entropy/mean": "entropy",
    "kl_loss": "kl",
    "kl_div": "kl",
    "mean_kl": "kl",
    "approx_kl": "ppo_kl",
    "pg_loss": "loss",
    "train_loss": "loss",
    "lr": "learning_rate",
    "gradient_norm": "grad_norm",
    "mean_length": "completions/mean_length",
    "mean_response_length": "completions/mean_length",
    "completion_length/mean": "completions/mean_length",
    "truncated_ratio": "completions/clipped_ratio",
    "truncated_rate": "completions/clipped_ratio",
    "acc": "accuracy",
    "em": "accuracy",
    "exact_match": "accuracy",
    "success_rate": "accuracy",
    "solve_rate": "accuracy",
    "tool_parse_rate": "parse_rate",
    "num_tool_calls": "tools/call_frequency",
    "mean_tool_calls": "tools/call_frequency",
    "tool_calls/mean": "tools/call_frequency",
    "tool_calls": "tools/call_frequency",
    "tools": "tools/call_frequency",
    "num_turns": "turns",
    "mean_turns": "turns",
}
ALIASES: dict[str, str] = _VERL | _TINKER | _OPENRLHF | _NEMO_RL | _SLIME | _GENERIC

STEPS = (
    *("step", "global_step", "train/global_step", "training/global_step", "trainer/global_step", "_step"),
    *("train_step", "training_step", "optimizer_step", "rollout/step", "steps", "iteration", "iter", "update"),
)
"""Names of the column that counts the optimizer steps, the best first."""
