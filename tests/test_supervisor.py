"""The closed loop: when the supervisor acts, and what `erroneous` does to a model that broke."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2ForCausalLM

from collapsewatch.interventions.base import Guide, Intervention, NotApplicable, PromptRow, Training
from collapsewatch.interventions.erroneous import LEAST_WARMUP, Erroneous
from collapsewatch.interventions.sft import TokenRow, collate, sft_update
from collapsewatch.queries import find_runs, open_run
from collapsewatch.records import Alarm, Applied, Driver, Observation, StepRecord, Tier
from collapsewatch.schedules import First, Interleaved, Schedule, Synchronous, Triggered
from collapsewatch.supervisor import AGAIN, Supervisor
from tests.closed_loop import BREAK_AT, PROMPTS, closed_loop, token_row

pytestmark = pytest.mark.usefixtures("one_path")

# -- the supervisor alone ----------------------------------------------------------------------------------


class Tally(Intervention):
    """Remembers when it acted; can do nothing while `idle`."""

    name = "tally"

    def __init__(self) -> None:
        self.acted: list[int] = []
        self.observed: list[tuple[int, list[PromptRow]]] = []
        self.idle = False

    def observe(self, step: int, failed: Sequence[PromptRow], training: Training) -> None:
        self.observed.append((step, list(failed)))

    def apply(self, step: int, training: Training) -> dict[str, Any]:
        if self.idle:
            raise NotApplicable("idle")
        self.acted.append(step)
        return {"updates": 1}


def record(step: int, polluted: float = 0.5) -> StepRecord:
    observations = (Observation("polluted", polluted, 4), Observation("no_call", 0.1, 4))
    return StepRecord(step, 0.0, {"reward": 1 - polluted}, observations)


def alarm(step: int, tier: Tier = Tier.ALARM) -> Alarm:
    return Alarm(step, tier, "hard_limit", (Driver("polluted", 1.0, 0.5, 0.0, 0.1),), step, 1.0, 0.0)


def drive(supervisor: Supervisor, states: str) -> list[Applied]:
    """One step per letter: `.` ok, `A` an alarm begins, `h` it holds, `w` only a watch notice."""
    rows = []
    for step, letter in enumerate(states, 1):
        alarms = {"A": [alarm(step)], "w": [alarm(step, Tier.WATCH)]}.get(letter, [])
        state = {"A": "alarm", "h": "hold"}.get(letter, "ok")
        rows += supervisor.step(record(step, step / 100), alarms, state, [{"task": step}], Training(None, None))
    return rows


def test_it_acts_at_once_and_again_while_the_alarm_holds() -> None:
    tally = Tally()
    rows = drive(Supervisor(tally, Triggered(3)), "..w.Ahhhhhhh....Ah..")
    assert tally.acted == [5, 8, 11, 17]
    assert tally.observed == [(step, [{"task": step}]) for step in range(1, 21)]
    assert [(r.step, r.status, r.trigger_step) for r in rows] == [
        *(
            (5, "applied", 5),
            (6, "effect", 5),
            (8, "applied", 5),
            (9, "effect", 5),
            (11, "applied", 5),
            (12, "effect", 5),
        ),
        *((17, "applied", 17), (18, "effect", 17)),
    ]
    assert {(r.name, r.schedule) for r in rows} == {("tally", "triggered")}


def test_a_new_alarm_within_the_cooldown_waits_for_its_end() -> None:
    tally = Tally()
    drive(Supervisor(tally, Triggered(5)), "Ah.Ahhhh..")
    assert tally.acted == [1, 6]


def test_the_effect_tells_before_from_after() -> None:
    applied, effect = drive(Supervisor(Tally(), Triggered(9)), "..A..")
    assert applied.detail == {"updates": 1, "before": {"polluted": 0.03, "reward": 0.97}}
    streams = {"polluted": {"before": 0.03, "after": 0.04}, "reward": {"before": 0.97, "after": 0.96}}
    assert effect.detail == {"applied_step": 3, "streams": streams}


def test_what_cannot_act_is_skipped_with_the_reason() -> None:
    tally = Tally()
    tally.idle = True
    rows = drive(Supervisor(tally, Triggered(2)), "Ahhh")
    assert [(r.step, r.status, r.detail) for r in rows] == [
        (1, "skipped", {"reason": "idle"}),
        (3, "skipped", {"reason": "idle"}),
    ]
    with pytest.raises(ValueError, match="cooldown: got 0"):
        Triggered(0)


class Switch(Tally):
    """Stands, and says how its rollouts are guided; fails to be switched on while `idle`."""

    standing = True

    def begin(self, step: int, training: Training) -> dict[str, Any]:
        if self.idle:
            raise NotApplicable("idle")
        self.acted.append(step)
        return {}

    def guide(self, row: PromptRow, member: int) -> Guide:
        return Guide(expert=member == 0)


def test_what_stands_is_on_for_as_long_as_the_alarm() -> None:
    switch, seen = Switch(), list[bool]()
    supervisor = Supervisor(switch, Triggered(3))
    rows = drive(supervisor, "..Ahh..Ah.")
    assert [(r.step, r.status) for r in rows] == [
        *((3, "begin"), (4, "effect"), (6, "end")),
        *((8, "begin"), (9, "effect"), (10, "end")),
    ]
    ended = rows[2].detail
    assert ended["began"] == 3 and ended["streams"]["reward"] == {"before": 0.97, "after": 0.94}
    # On in the steps 4, 5, 6 and 9, 10.
    assert supervisor.metrics() == {"supervised_steps": 5.0}
    assert not supervisor.on and supervisor.guides([{}] * 4, 2) == [Guide()] * 4
    seen += [guide.expert for guide in _on(supervisor).guides([{}] * 6, 4, first=6)]
    assert seen == [False, False, True, False, False, False]


def _on(supervisor: Supervisor) -> Supervisor:
    supervisor.on = True
    return supervisor


def test_a_switch_that_fails_is_tried_again_later() -> None:
    switch = Switch()
    switch.idle = True
    rows = drive(Supervisor(switch, Triggered()), "A" + "h" * 24)
    assert [(r.step, r.status) for r in rows] == [(1, "skipped"), (1 + AGAIN, "skipped"), (1 + 2 * AGAIN, "skipped")]


def test_a_failure_of_an_act_is_a_row_alone_and_an_end_among_several_ranks() -> None:
    class Broken(Tally):
        def apply(self, step: int, training: Training) -> dict[str, Any]:
            self.problems.append(("failed", {"on": "the side"}))
            raise RuntimeError("broken")

    rows = drive(Supervisor(Broken(), Triggered()), "A.")
    assert [(r.status, r.detail) for r in rows] == [
        ("failed", {"reason": "RuntimeError: broken"}),
        ("failed", {"on": "the side"}),
    ]
    supervisor = Supervisor(Broken(), Triggered())
    with pytest.raises(RuntimeError, match="broken"):
        list(supervisor.step(record(1), [alarm(1)], "alarm", [], Training(None, None, 0, 2)))


def test_a_state_is_of_one_intervention_and_schedule() -> None:
    state = Supervisor(Tally(), Triggered()).state_dict()
    with pytest.raises(ValueError, match="got the state of tally triggered, expected tally synchronous"):
        Supervisor(Tally(), Synchronous()).load_state_dict(state, Training(None, None))


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    st.integers(1, 6),
    st.integers(1, 7),
    st.text("ok", min_size=1, max_size=60),
)
def test_schedules_do_as_they_say(segments: list[int], hold: int, every: int, states: str) -> None:
    last, acts = None, []
    triggered = Triggered(every)
    for step, letter in enumerate(states, 1):
        assert triggered.on(step, letter == "k") == (letter == "k")
        if triggered.due(step, letter == "k", last):
            last = step
            acts.append(step)
    assert all(states[step - 1] == "k" for step in acts)
    assert all(b - a >= every for a, b in pairwise(acts))
    assert (acts[:1] or [0])[0] == states.find("k") + 1
    # What is on, and what is due, by walking through the segments.
    on, due, step = set[int](), list[int](), 0
    for length in segments[:-1]:
        step += length
        due.append(step)
        on |= set(range(step, step + hold))
    interleaved = Interleaved(segments, hold)
    steps = range(sum(segments) + hold + 2)
    assert [step for step in steps if interleaved.due(step, True, None)] == due
    assert {step for step in steps if interleaved.on(step, True)} == on
    synchronous = Synchronous(every)
    assert [step for step in steps if synchronous.due(step, False, None)] == list(steps)[every::every]
    assert all(synchronous.on(step, False) for step in steps)
    assert [step for step in steps if First().due(step, True, None)] == [0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Interleaved((5,)), r"segments: got \[5\], expected at least 2 lengths"),
        (lambda: Interleaved((5, 0)), "segments: got 0, expected a whole number of at least 1"),
        (lambda: Interleaved((5, 5), hold=0), "hold: got 0, expected a whole number"),
        (lambda: Synchronous(1.5), "every: got 1.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda: Triggered(True), "cooldown: got True, expected a whole number"),
    ],
)
def test_a_schedule_out_of_range_is_refused(make: Callable[[], Schedule], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# -- supervised updates ------------------------------------------------------------------------------------


def test_collate_learns_only_where_the_mask_says() -> None:
    batch = collate([TokenRow([5, 6, 7], [0, 1, 1]), TokenRow([8], [1])], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


@pytest.mark.parametrize("max_grad_norm", [1e-3, 0.0, None])
def test_sft_update_returns_the_token_mean_loss_and_clips(model_path: Path, tokenizer: Any, max_grad_norm: Any) -> None:
    model = Qwen2ForCausalLM.from_pretrained(model_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rows = [token_row(tokenizer, prompt) for prompt in PROMPTS]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for row in rows:
        logp = model(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
        losses += [-logp[t - 1, row.ids[t]].item() for t in range(1, len(row.ids)) if row.mask[t]]
    assert sft_update(model, optimizer, rows, 0, max_grad_norm=max_grad_norm) == pytest.approx(
        sum(losses) / len(losses), rel=1e-4
    )
    moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters()) ** 0.5
    # As in transformers, no limit means none.
    assert moved == pytest.approx(1e-3, rel=0.01) if max_grad_norm else moved > 0.1
    assert all(p.grad is None for p in model.parameters())


# -- the whole loop in a training --------------------------------------------------------------------------


def test_erroneous_brings_a_broken_model_back(tmp_path: Path, answering: Path) -> None:
    sabotage = closed_loop(tmp_path, answering, Erroneous(learning_rate=1e-2, updates=20), Triggered(20))
    assert not sabotage.faults
    run = open_run(tmp_path / "run")
    first = next(alarm for alarm in run.alarms() if alarm.tier is Tier.ALARM)
    assert BREAK_AT < first.step <= BREAK_AT + 3
    applied, effect = run.applied()
    assert (applied.status, applied.step, applied.trigger_step) == ("applied", first.step, first.step)
    assert applied.detail["loss_after"] < 0.1 < applied.detail["loss_before"]
    assert (effect.status, effect.step) == ("effect", first.step + 1)
    assert effect.detail["streams"]["reward"]["before"] < 0.1 < 0.9 < effect.detail["streams"]["reward"]["after"]
    reward = {r.step: r.metrics["reward"] for r in run.records()}
    assert reward[BREAK_AT] > 0.9 and reward[24] > 0.9
    # RL starts again with an empty optimizer, and warms up; before, its rate was the schedule's.
    assert sabotage.moments[first.step] == 0 < sabotage.moments[first.step - 1]
    back = {s: (s - first.step + 1) / (LEAST_WARMUP + 1) for s in range(first.step, 24)}
    expected = {s: min(back.get(s, 1.0), 1.0) for s in range(1, 24)}
    assert {s: sabotage.factors[s] for s in expected} == pytest.approx(expected)


def test_without_it_the_model_stays_broken(tmp_path: Path, answering: Path) -> None:
    sabotage = closed_loop(tmp_path, answering, None, max_steps=BREAK_AT + 6)
    run = open_run(tmp_path / "run")
    assert not run.applied() and all(sabotage.moments.values())
    assert [r.metrics["reward"] < 0.1 for r in run.records()] == [False] * BREAK_AT + [True] * 6


def test_erroneous_needs_an_expert_and_failed_prompts() -> None:
    with pytest.raises(ValueError, match="erroneous: got no expert"):
        Erroneous().check(Training(None, None))
    erroneous, training = Erroneous(window=2), Training(None, lambda rows: [])
    erroneous.check(training)
    with pytest.raises(NotApplicable, match="no prompt failed"):
        erroneous.apply(1, training)
    erroneous.observe(1, [{"prompt": "a"}, {"prompt": "b"}], training)
    with pytest.raises(NotApplicable, match="solved none of 2 prompts"):
        erroneous.apply(1, training)
    erroneous.observe(2, [], training)
    erroneous.observe(3, [], training)  # out of the window
    with pytest.raises(NotApplicable, match="no prompt failed"):
        erroneous.apply(3, training)


def test_a_second_training_is_not_warmed_up_from_a_step_of_the_first() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    trainer = SimpleNamespace(
        args=SimpleNamespace(get_warmup_steps=lambda steps: 0),
        state=SimpleNamespace(max_steps=200),
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        optimizer=optimizer,
    )
    erroneous, training = Erroneous(), Training(trainer, lambda rows: [])
    erroneous._applied = 100
    erroneous.check(training)
    erroneous.observe(1, [], training)
    assert optimizer.param_groups[0]["lr"] == 0.5


# -- two ranks ---------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys
from pathlib import Path
from collapsewatch import callback, steps
from collapsewatch.interventions.erroneous import Erroneous
from collapsewatch.schedules import First, Interleaved, Schedule, Synchronous, Triggered
from tests.closed_loop import closed_loop, digest

folder, answering = Path(sys.argv[1]), Path(sys.argv[2])
measure, calls = steps.measure_rank, 0

def torn(*args):
    global calls
    calls += 1
    if calls == 3:
        raise RuntimeError("torn")
    return measure(*args)

if os.environ["RANK"] == "1":
    steps.measure_rank = torn
    callback.time.strftime = lambda form: "a-second-later"  # the run's default name holds the time
erroneous = Erroneous(learning_rate=1e-2, updates=20)
sabotage = closed_loop(folder, answering, erroneous, Triggered(20), None, per_device_train_batch_size=16)
of = sabotage.trainer.accelerator
weights = digest(sabotage.trainer.model.parameters())
said = [weights, of.num_processes, sabotage.factors, sabotage.moments, sabotage.faults]
(folder / f"rank{of.process_index}.json").write_text(json.dumps(said))

(folder / "others").mkdir(exist_ok=True)
said = {}
for name in ("control_clamp", "advantage_penalty", "kl_anchor", "rollback", "reflection"):
    steps.measure_rank = measure
    schedule = "triggered" if name in ("kl_anchor", "rollback", "reflection") else "synchronous"
    held = {"per_device_train_batch_size": 8, "break_at": 4, "max_steps": 8}
    done = closed_loop(folder / "others", answering, name, schedule, name, **held)
    said[name] = [digest(done.trainer.model.parameters()), done.faults]
(folder / f"others{of.process_index}.json").write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_two_ranks_decide_alike_and_stay_identical_even_torn(tmp_path: Path, answering: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # `--multi_gpu` is how accelerate starts several processes; the script's `use_cpu` makes them gloo's.
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path), str(answering)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in "01")
    assert first[:-1] == second[:-1] and first[1] == 2
    # Where one rank fails to measure, neither waits for the other and both judge what there is.
    assert (first[-1], second[-1]) == ({}, {"measure": 1})
    (folder,) = (path for path in find_runs(tmp_path) if path.parent == tmp_path)
    run = open_run(folder)
    assert (
        folder.name.startswith("out-")
        and run.status() == "finished"
        and [a.status for a in run.applied()] == ["applied", "effect"]
    )
    records = list(run.records())
    assert len(records) == 24 and records[-1].metrics["reward"] > 0.9
    # Details are each rank's own, judgements are about all rollouts: 8 groups of 4, 4 of them on each rank.
    groups = [o.n for r in records for o in r.observations if o.stream == "no_call"]
    assert groups == [8, 8, 4] + [8] * 21
    rollouts = run.query(
        'SELECT rank, count(*), count(DISTINCT "group") FROM rollouts GROUP BY rank ORDER BY rank'
    ).rows
    assert rollouts == [(0, 16 * 24, 4 * 24), (1, 16 * 23, 4 * 23)]
    # Whatever acts on gradients, advantages or weights does so on both ranks alike.
    others, again = (json.loads((tmp_path / f"others{rank}.json").read_text()) for rank in "01")
    assert others == again and not any(faults for _, faults in others.values())
    for name in others:
        rows = open_run(tmp_path / "others" / name).applied()
        assert rows[0].status in ("applied", "begin"), (name, rows)
