"""What scalars say of a run: lasting losses with their onset and cause, and no alarm at what is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.levels import cut, fall, sagged
from collapsewatch.records import Observation, StepRecord, Verdict
from collapsewatch.replay import replay
from collapsewatch.verdict import Judgement, decide

CHANCE = np.random.default_rng(0)
LENGTH, CALLS = "completions/mean_length", "tools/call_frequency"


def noisy(*levels: tuple[float, int], noise: float = 0.03) -> list[float]:
    """Levels held for so many rows, each value off by about its share of noise."""
    return [level * (1 + noise * CHANCE.standard_normal()) for level, rows in levels for _ in range(rows)]


def judged(every: int = 5, cut: Sequence[float] | None = None, **metrics: Sequence[float]) -> Judgement:
    """The judgement of a run that logged these metrics every 5th step; `__` in a name stands for `/`."""
    rows = [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]
    records = []
    for i, row in enumerate(rows):
        seen = () if cut is None else (Observation("truncated", cut[i], 1),)
        records.append(StepRecord((i + 1) * every, 0.0, {n.replace("__", "/"): v for n, v in row.items()}, seen))
    return decide(replay(records))


FALLING = [(0.4, 10), (0.8, 20), (0.02, 12)]
RISING = [(0.4, 10), (0.8, 32)]
BEFORE = 30  # rows before the loss


def held(before: float, after: float, early: int = 0) -> list[float]:
    return noisy((before, BEFORE - early), (after, 12 + early))


COLLAPSES = {
    "reward_loss": ({"reward": noisy(*FALLING)}, "reward"),
    "reward_masked": ({"reward": noisy(*RISING), "accuracy": noisy(*FALLING)}, "accuracy"),
    "tool_abandonment": (
        {"reward": noisy(*RISING), "accuracy": noisy(*FALLING), "tools__call_frequency": held(3.0, 1.0)}, CALLS,
    ),
    "early_stop": ({"reward": noisy(*FALLING), "completions__mean_length": held(200, 3)}, LENGTH),
    "length_runaway": ({"reward": noisy(*FALLING), "completions__mean_length": held(200, 512, 2)}, LENGTH),
    "grad_explosion": ({"reward": noisy(*FALLING), "grad_norm": held(0.5, 90.0, 3)}, "grad_norm"),
    "entropy_explosion": ({"reward": noisy(*FALLING), "entropy": held(0.2, 5.0, 1)}, "entropy"),
    "kl_explosion": ({"reward": noisy(*FALLING), "kl": held(0.01, 4.0, 4)}, "kl"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLAPSES)
def test_a_lasting_loss_is_named_by_what_moved_first(kind: str) -> None:
    metrics, mover = COLLAPSES[kind]
    found = judged(**metrics)
    assert (found.verdict, found.kind, found.mover) == (Verdict.COLLAPSED, kind, mover)
    assert found.onset == (BEFORE + 1) * 5
    assert found.alarm is None and found.finding is not None and found.finding.seen == found.onset + 5
    assert sum(driver.share for driver in found.finding.drivers) == pytest.approx(1.0)


def test_a_loss_of_a_third_is_a_degradation_and_one_that_came_back_is_none() -> None:
    found = judged(reward=noisy((0.8, 25), (0.45, 25)))
    assert (found.verdict, found.kind, found.onset) == (Verdict.DEGRADED, "reward_loss", 130)
    assert judged(reward=noisy((0.8, 20), (0.45, 10), (0.8, 20))).verdict is Verdict.HEALTHY
    masked = judged(reward=noisy((0.8, 50)), accuracy=noisy((0.8, 25), (0.45, 25)))
    assert (masked.verdict, masked.kind) == (Verdict.DEGRADED, "reward_masked")


def test_a_loss_in_the_last_rows_is_seen_and_two_bad_batches_are_not() -> None:
    assert judged(reward=noisy((0.8, 60), (0.01, 4))).verdict is Verdict.COLLAPSED
    batches = (CHANCE.binomial(4, 0.5, 60) / 4).tolist()
    assert judged(reward=[*batches, 0.0, 0.0]).verdict is Verdict.HEALTHY
    few = [0.75, 0.75, 0.25, 0.75, 0.75, 1.0]
    assert judged(reward=[*few, 0.0, 0.0]).verdict is Verdict.HEALTHY


def test_few_rows_with_little_noise_are_enough() -> None:
    found = judged(50, accuracy=[0.380, 0.386, 0.391, 0.0, 0.0], tools__call_frequency=[3.0, 3.0, 3.0, 1.0, 1.0])
    assert (found.verdict, found.kind, found.onset) == (Verdict.COLLAPSED, "tool_abandonment", 200)
    assert judged(50, accuracy=[0.380, 0.386, 0.391, 0.395, 0.400]).verdict is Verdict.HEALTHY


def test_noise_is_no_loss() -> None:
    chance, wrong = np.random.default_rng(5), 0
    for _ in range(150):
        rows, batch = int(chance.choice([8, 20, 50, 100])), int(chance.choice([4, 16, 64]))
        level = chance.uniform(0.05, 0.95) + 0 * np.linspace(0, 1, rows)
        reward = chance.binomial(batch, level) / batch
        lengths = 200 * np.exp(np.cumsum(0.03 * chance.standard_normal(rows)))
        entropy = np.linspace(1.0, 0.05, rows) * np.exp(0.1 * chance.standard_normal(rows))
        grad = np.exp(0.7 * chance.standard_normal(rows))
        found = judged(reward=reward, completions__mean_length=lengths, entropy=entropy, grad_norm=grad)
        wrong += found.verdict not in (Verdict.HEALTHY, Verdict.DEAD)
    assert wrong <= 1


def test_turns_of_a_few_tokens_that_pay_are_a_silent_loss() -> None:
    found = judged(reward=noisy((0.6, 20), (0.7, 20)), completions__mean_length=noisy((150.0, 20), (2.5, 20)))
    assert (found.verdict, found.kind, found.onset) == (Verdict.SILENT, "early_stop", 105)
    ramp = [*noisy((150.0, 20)), 60.0, *noisy((2.5, 9))]
    assert judged(reward=noisy((0.6, 30)), completions__mean_length=ramp).kind == "early_stop"
    shorter = judged(reward=noisy((0.6, 40)), completions__mean_length=noisy((150.0, 20), (40.0, 20)))
    assert shorter.verdict is Verdict.HEALTHY


def lock(reward: list[float], spikes: Sequence[int] = ()) -> Judgement:
    entropy, grad = noisy((0.8, 30), (0.001, 40), noise=0.1), noisy((5.0, 30), (1e-4, 40), noise=0.5)
    for row in spikes:
        grad[row] = 200.0
    return judged(reward=reward, entropy=entropy, grad_norm=grad)


def test_a_policy_locked_into_one_text_collapsed_unless_it_had_nothing_left_to_learn() -> None:
    found = lock(noisy((-1.5, 30), (-1.2, 40), noise=0.2))
    assert (found.verdict, found.kind, found.onset, found.mover) == (Verdict.COLLAPSED, "lock_in", 155, "entropy")
    assert lock(noisy((-1.5, 30), (-1.2, 40), noise=0.2), spikes=(40, 55)).kind == "lock_in"
    assert lock(noisy((0.5, 30), (1.0, 40), noise=0.01)).verdict is Verdict.HEALTHY
    assert lock([0.0] * 70).verdict is Verdict.DEAD  # it never lived


def test_a_reward_that_was_lost_for_long_and_came_back_is_recovered() -> None:
    found = judged(reward=noisy((0.8, 30), (0.02, 14), (0.75, 26)))
    assert (found.verdict, found.kind, found.onset) == (Verdict.RECOVERED, "reward_loss", 155)
    assert judged(reward=noisy((0.8, 30), (0.02, 3), (0.75, 26))).verdict is Verdict.HEALTHY
    assert judged(reward=noisy((0.02, 30), (0.8, 30))).verdict is Verdict.HEALTHY


def test_tools_that_are_hardly_called_any_more_are_a_silent_loss() -> None:
    found = judged(reward=noisy((0.6, 20), (0.7, 9)), tools__call_frequency=noisy((2.5, 20), (0.1, 9)))
    assert (found.verdict, found.kind, found.onset) == (Verdict.SILENT, "tool_abandonment", 105)
    fewer = judged(reward=noisy((0.6, 20), (0.7, 20)), tools__call_frequency=noisy((2.5, 20), (1.2, 20)))
    assert fewer.verdict is Verdict.HEALTHY


def test_low_entropy_with_gradients_is_how_tool_agents_are() -> None:
    entropy, grad = noisy((0.4, 30), (0.015, 40), noise=0.1), noisy((0.5, 70), noise=0.5)
    assert judged(reward=noisy((0.3, 30), (0.4, 40)), entropy=entropy, grad_norm=grad).verdict is Verdict.HEALTHY


@pytest.mark.parametrize(("reward", "verdict"), [(0.64, Verdict.SILENT), (0.3, Verdict.COLLAPSED)])
def test_one_answer_to_everything_is_told_by_its_length(reward: float, verdict: Verdict) -> None:
    lengths = [40.0, 70.0, 96.0, 31.0, 72.0, *[9.0, 9.0, 41.0, 9.0, 9.0] * 7]
    rewards = [0.54, 0.64, 0.59, 0.63, 0.65, *[reward] * 35]
    spread = [0.2] * 5 + [0.0, 0.0, 0.1, 0.0, 0.0] * 7
    found = judged(1, reward=rewards, reward_std=spread, completions__mean_length=lengths)
    assert (found.verdict, found.kind, found.onset) == (verdict, "lock_in", 6)


def test_the_onset_is_the_jump_and_not_the_drift_before_it() -> None:
    rates = [0.02, 0.0] * 15 + [0.1, 0.125, 0.22, 0.15] + [1.0] * 8
    found = judged(cut=rates, reward=noisy((0.9, len(rates))))
    assert (found.verdict, found.kind, found.onset) == (Verdict.SILENT, "eos_loss", 175)


def test_a_reward_that_fell_shortly_before_the_structure_moved_first() -> None:
    rates, reward = [0.02] * 30 + [1.0] * 12, noisy((0.8, 28), (0.1, 2), (0.01, 12))
    found = judged(cut=rates, reward=reward)
    assert (found.verdict, found.kind) == (Verdict.COLLAPSED, "length_runaway")
    assert (found.onset, found.mover) == (145, "reward") and found.alarm is not None


def test_a_low_limit_is_no_failure_while_the_reward_rises() -> None:
    rising = [0.3 + 0.4 * i / 60 + 0.03 * CHANCE.standard_normal() for i in range(60)]
    assert judged(cut=[0.95] * 60, reward=rising).verdict is Verdict.HEALTHY
    assert judged(cut=[0.0, 0.1, 0.3, 0.6] + [1.0] * 56, reward=rising).verdict is Verdict.HEALTHY
    longer = [min(0.3, 0.01 + i / 180) for i in range(60)]
    assert judged(cut=longer, reward=rising).verdict is Verdict.HEALTHY
    lost = judged(cut=[0.02] * 60 + [1.0] * 20, reward=[*rising, *noisy((0.7, 20))])
    assert (lost.verdict, lost.kind) == (Verdict.SILENT, "eos_loss")


def test_values_without_squares_tell_nothing() -> None:
    found = judged(reward=[1.7e308, -1.7e308, math.nan, math.inf] * 10 + noisy((0.8, 40)), grad_norm=[1.7e308] * 80)
    assert (found.verdict, found.reward) == (Verdict.HEALTHY, pytest.approx((0.8, 0.8, 0.8), abs=0.05))


def test_two_small_batches_of_long_answers_are_chance_unless_the_reward_fell_with_them() -> None:
    rates = [0.0, 0.25, 0.0, 0.0] * 10 + [0.5, 0.75] + [0.0, 0.25] * 12
    assert judged(cut=rates, reward=noisy((0.6, len(rates)))).verdict is Verdict.HEALTHY
    fell = judged(cut=rates, reward=noisy((0.6, 40), (0.02, 2), (0.6, 24)))
    assert (fell.verdict, fell.kind) == (Verdict.RECOVERED, "length_runaway")


def test_three_rows_in_which_no_turn_ends_are_no_chance_at_the_end() -> None:
    assert judged(cut=[0.02] * 30 + [1.0] * 2, reward=noisy((0.6, 32))).verdict is Verdict.HEALTHY
    assert judged(cut=[0.02] * 30 + [1.0] * 3, reward=noisy((0.6, 33))).verdict is not Verdict.HEALTHY


@pytest.mark.parametrize("rows", [3, 4, 5])
def test_the_rows_before_an_onset_do_not_make_a_loss_over(rows: int) -> None:
    rates = [0.02] * 30 + [1.0] * rows
    assert judged(cut=rates, reward=noisy((0.6, 30 + rows))).verdict is Verdict.SILENT
    assert judged(cut=rates, reward=noisy((0.6, 30), (0.5, rows))).verdict is not Verdict.RECOVERED
    assert judged(cut=[*rates, *[0.02] * 10], reward=noisy((0.6, 40 + rows))).verdict is not Verdict.SILENT


def test_an_end_of_turn_that_was_lost_is_no_low_limit_though_the_reward_rises() -> None:
    rising = [0.3 + 0.4 * i / 100 + 0.03 * CHANCE.standard_normal() for i in range(100)]
    slowly = np.clip((np.arange(100) - 30) / 40, 0.0, 1.0)
    found = judged(cut=slowly.tolist(), reward=rising)
    assert (found.verdict, found.kind) == (Verdict.SILENT, "eos_loss")
    assert judged(cut=(0.6 * slowly).tolist(), reward=rising).verdict is Verdict.HEALTHY


GONE = [math.nan] * 12


@pytest.mark.parametrize(
    ("reward", "verdict"), [(GONE, Verdict.COLLAPSED), ([0.02] * 12, Verdict.COLLAPSED), ([0.8] * 12, Verdict.DEGRADED)]
)
def test_updates_without_finite_numbers_to_the_end_are_a_loss(reward: list[float], verdict: Verdict) -> None:
    rewards, grad = [*noisy((0.8, 30)), *reward], [*noisy((0.5, 30)), *GONE]
    found = judged(reward=rewards, grad_norm=grad, loss=grad)
    assert (found.verdict, found.kind, found.onset, found.mover) == (verdict, "not_finite", 155, "not_finite")


def test_numbers_that_were_never_there_or_come_back_are_none_that_went() -> None:
    for entropy in ([math.nan] * 42, [*noisy((0.5, 38)), *GONE[:4]], [*noisy((0.5, 20)), *GONE, *noisy((0.5, 10))]):
        assert judged(reward=noisy((0.8, 42)), entropy=entropy).verdict is Verdict.HEALTHY
    earlier = judged(reward=noisy((0.8, 30), (0.02, 20)), loss=[*noisy((0.5, 40)), *GONE[:10]])
    assert (earlier.verdict, earlier.kind, earlier.onset) == (Verdict.COLLAPSED, "reward_loss", 155)


def test_updates_may_be_told_of_in_a_few_steps_only() -> None:
    metrics = [{"reward": x} for x in noisy((0.8, 120))]
    for i in range(0, 120, 4):
        metrics[i]["loss"] = 0.1 if i < 60 else math.nan
    found = decide(replay([StepRecord(i, 0.0, told) for i, told in enumerate(metrics)]))
    assert (found.verdict, found.kind, found.onset) == (Verdict.DEGRADED, "not_finite", 60)


def test_where_only_penalties_are_given_a_run_may_live() -> None:
    assert judged(reward=noisy((-1.5, 30), (-0.5, 30))).verdict is Verdict.HEALTHY
    assert judged(reward=[-1.0] * 60).verdict is Verdict.DEAD
    assert judged(cut=[1.0] * 60, reward=noisy((-1.0, 60))).verdict is Verdict.DEAD


def test_a_run_that_starts_truncated_and_gets_better_is_healthy() -> None:
    rates = np.linspace(1.0, 0.5, 60).tolist()
    assert judged(cut=rates, reward=noisy((0.3, 30), (0.6, 30))).verdict is Verdict.HEALTHY
    assert judged(cut=[0.8] * 60, reward=noisy((0.6, 60))).verdict is Verdict.SILENT


@pytest.mark.parametrize("freak", [-15.0, 15.0])
def test_one_freak_row_hides_no_loss_and_is_none(freak: float) -> None:
    lost, kept = noisy(*FALLING), noisy(*RISING)
    lost[15] = kept[15] = freak
    found = judged(reward=lost)
    assert (found.verdict, found.kind, found.onset) == (Verdict.COLLAPSED, "reward_loss", 155)
    assert judged(reward=kept).verdict is Verdict.HEALTHY
    rates, reward = [0.02] * 30 + [1.0] * 12, noisy((0.8, 30), (0.1, 12))
    reward[15] = freak
    assert judged(cut=rates, reward=reward).verdict is Verdict.COLLAPSED
    returned = noisy((0.8, 40), (0.02, 14), (0.75, 26))
    returned[5] = freak
    assert judged(reward=returned).verdict is Verdict.RECOVERED


@given(st.lists(st.floats(-1e100, 1e100), max_size=60))
def test_no_values_are_too_odd(values: list[float]) -> None:
    found = fall(values)
    assert found is None or (2 <= found.at < len(values) - 1 and found.before > found.after)
    assert sagged(values) in (True, False)


@given(st.lists(st.integers(-9, 9), min_size=3, max_size=30))
def test_the_cut_leaves_the_least_variance(values: list[int]) -> None:
    v = np.array(values, dtype=float)
    k = cut(v)
    assert k is not None
    left = [v[:i].var() * i + v[i:].var() * (v.size - i) for i in range(1, v.size - 1)]
    assert left[k - 1] == pytest.approx(min(left), abs=1e-9)
