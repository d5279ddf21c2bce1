"""Every intervention under every schedule it makes sense under, and what makes no sense refused in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl import GRPOTrainer

from collapsewatch.interventions import INTERVENTIONS
from collapsewatch.interventions.base import Guide, Intervention, Training
from collapsewatch.interventions.erroneous import Erroneous
from collapsewatch.interventions.kl_anchor import KLAnchor
from collapsewatch.interventions.off_policy import OffPolicy
from collapsewatch.interventions.rollback import Rollback
from collapsewatch.interventions.sft_first import SFTFirst
from collapsewatch.plugins import resolve
from collapsewatch.queries import open_run
from collapsewatch.records import Applied
from collapsewatch.schedules import SCHEDULES, First, Interleaved, Schedule, Synchronous, Triggered
from collapsewatch.supervisor import Supervisor, supervise
from tests.closed_loop import PROMPTS, closed_loop

STEPS, BROKEN = 8, 4
WHEN: dict[str, Schedule] = {
    "triggered": Triggered(2),
    "interleaved": Interleaved((2, 3, 9), hold=2),
    "synchronous": Synchronous(every=3),
    "first": First(),
}
QUICK: dict[str, dict[str, Any]] = {
    name: {"learning_rate": 1e-3, "updates": 2, "batch": 4} for name in ("sft_first", "erroneous", "reflection")
}


def made(name: str) -> Intervention:
    found: Intervention = resolve(INTERVENTIONS, name, "intervention")(**QUICK.get(name, {}))
    return found


class Guided(GRPOTrainer):
    """A trainer that asks how its rollouts are to be sampled, and writes it down."""

    serves_guides = True
    guide: Any = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.asked: list[tuple[Sequence[str], Sequence[Guide]]] = getattr(self, "asked", [])
        self.asked.append(([row["prompt"] for row in inputs], self.guide(inputs, self.num_generations)))
        return super()._generate_and_score_completions(inputs)


CASES = [(name, when) for name in INTERVENTIONS for when in made(name).schedules]


@pytest.mark.usefixtures("one_path")
@pytest.mark.parametrize(("name", "when"), CASES)
def test_every_intervention_works_under_each_of_its_schedules(
    tmp_path: Path, answering: Path, name: str, when: str
) -> None:
    act, kind = made(name), Guided if name in ("off_policy", "hint") else GRPOTrainer
    held = {"kind": kind, "break_at": BROKEN, "max_steps": STEPS, "per_device_train_batch_size": 8}
    done = closed_loop(tmp_path, answering, act, WHEN[when], **held)
    assert not done.faults
    with closing(open_run(tmp_path / "run")) as run:
        rows, alarm = run.applied(), next((a.step for a in run.alarms() if a.tier == "alarm"), 0)
        metrics = run.query("SELECT step, value FROM metrics WHERE metric = 'supervised_steps' ORDER BY step").rows
    assert {(row.name, row.schedule) for row in rows} == {(name, when)}
    assert [row.trigger_step for row in rows] == [alarm if when == "triggered" else 0] * len(rows)
    last = int(metrics[-1][0])
    assert last == (alarm if name == "stop" else STEPS)
    told = [(row.step, row.status) for row in rows]
    if act.standing:
        began, ended = {"triggered": (alarm, None), "interleaved": (2, 4), "synchronous": (0, None)}[when]
        wanted = [(began, "begin"), (began + 1, "effect")] + ([(ended, "end")] if ended else [])
        wanted += [(5, "begin"), (6, "effect"), (7, "end")] if when == "interleaved" else []
        assert told == wanted
    else:
        acts = {"triggered": [alarm, alarm + 2, alarm + 4], "interleaved": [2, 5], "synchronous": [3, 6, 9]}
        acts["first"] = [0]
        tried = [step for step in acts[when] if step <= last]
        if name in ("rollback", "stop"):  # the one ends the alarm, the other the training
            tried = tried[:1]
        assert [row.step for row in rows if row.status in ("applied", "skipped")] == tried
        assert [status for step, status in told if step > BROKEN and status != "effect"][:1] in (["applied"], [])
    assert [value for _, value in metrics] == supervised(rows, last, act.standing)
    for row in rows:
        if row.status == "effect":
            begun = next(r for r in rows if r.step == row.detail["applied_step"] and r.status in ("applied", "begin"))
            streams = row.detail["streams"]
            assert {k: v["before"] for k, v in streams.items() if v["before"] is not None} == begun.detail["before"]
            assert "reward" in streams and all("after" in stream for stream in streams.values())
    if kind is Guided:
        asked = done.trainer.asked
        on = [sum(value for _, value in metrics[:i]) for i in range(len(metrics))]
        assert len(asked) == STEPS and done.trainer.guide is None and on
        for step, (prompts, guides) in enumerate(asked, 1):
            active = int(metrics[step - 1][1]) - (int(metrics[step - 2][1]) if step > 1 else 0)
            assert [prompts[i] == prompts[i - i % 4] for i in range(8)] == [True] * 8  # groups lie together
            marked = Guide(hint=name == "hint", expert=name == "off_policy")
            first = {"off_policy": 1, "hint": 2}[name] if active else 0
            assert guides == [marked if i % 4 < first else Guide() for i in range(8)]


def supervised(rows: Sequence[Applied], last: int, standing: bool) -> list[float]:
    """How many steps were supervised up to each step, from the rows alone."""
    counts = []
    for step in range(1, last + 1):
        updates = sum(row.detail["updates"] for row in rows if row.step <= step and "updates" in row.detail)
        on = 0
        for one in range(1, step + 1) if standing else ():
            switches = [row.status for row in rows if row.step < one and row.status in ("begin", "end")]
            on += switches[-1:] == ["begin"]
        counts.append(float(updates + on))
    return counts


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_schedule_that_makes_no_sense_is_refused(name: str) -> None:
    act = made(name)
    assert set(act.schedules) <= set(SCHEDULES) and act.name == name
    for when in SCHEDULES:
        if when in act.schedules:
            assert Supervisor(act, WHEN[when]).schedule.name == when
        else:
            with pytest.raises(ValueError, match=f"intervention {name}: got schedule '{when}', expected one of"):
                Supervisor(act, WHEN[when])
    usual = supervise(name, None)
    assert usual is not None and usual.schedule.name == act.schedules[0]


def training(expert: Any = None, **trainer: Any) -> Training:
    args = SimpleNamespace(save_strategy=trainer.pop("save_strategy", "no"), output_dir="")
    return Training(SimpleNamespace(args=args, num_generations=4, **trainer), expert)


def test_the_document_lists_every_intervention_and_schedule() -> None:
    text = (Path(__file__).parents[1] / "docs" / "supervision.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (acts|stands) \| ([\w, ]+) \|", text, re.MULTILINE)
    assert rows == [
        (name, "stands" if made(name).standing else "acts", ", ".join(made(name).schedules)) for name in INTERVENTIONS
    ]
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]*\|$", text, re.MULTILINE) == list(SCHEDULES)
    for name, path in INTERVENTIONS.items():
        assert f"**`{name}`**" in text and path.startswith(f"collapsewatch.interventions.{name}:")


def test_the_document_s_own_intervention_works(tmp_path: Path, answering: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "supervision.md").read_text()
    code = text.split("```python\n")[-1].split("```")[0]
    named: dict[str, Any] = {}
    exec(code, named)
    held = {"break_at": 99, "max_steps": 5, "per_device_train_batch_size": 16}
    done = closed_loop(tmp_path, answering, named["Cooler"](), Interleaved((1, 9), hold=2), **held)
    with closing(open_run(tmp_path / "run")) as run:
        switched = [(row.step, row.status, row.detail.get("epsilon_high")) for row in run.applied()]
    assert switched == [(1, "begin", 0.1), (2, "effect", None), (3, "end", 0.2)] and done.trainer.epsilon_high == 0.2


REFUSED: list[tuple[Intervention, Training, str]] = [
    (Erroneous(), training(), "erroneous: got no expert, expected"),
    (SFTFirst(), training(), "sft_first: got no expert, expected"),
    (Erroneous(), training(list, is_deepspeed_enabled=True), "got DeepSpeed, expected plain, DDP or FSDP"),
    (Erroneous(reset_reference=True), training(list, ref_model=None), "there is no KL reference to reset"),
    (Erroneous(reset_reference=True), training(list, ref_model=1, is_fsdp_enabled=True), "each rank holds whole"),
    (Rollback(), training(is_fsdp_enabled=True), "got FSDP, whose weights no rank holds whole, and no save_strategy"),
    (KLAnchor(), training(is_fsdp_enabled=True), "got FSDP, whose weights no rank holds whole, expected plain or DDP"),
    (OffPolicy(4), training(), "count: got 4, expected less than all 4"),
]


@pytest.mark.parametrize(("act", "of", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_a_training_that_cannot_be_helped_is_refused_before_step_1(act: Intervention, of: Training, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        act.check(of)


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("lr_cut", {"factor": 1.0}, "factor: got 1.0, expected between 0 and 1"),
        ("rollback", {"factor": 0.0}, "factor: got 0.0, expected above 0, at most 1"),
        ("rollback", {"every": 0}, "every, count: got 0, 3, expected at least 1"),
        ("kl_anchor", {"weight": 0.0}, "weight: got 0.0, expected above 0"),
        ("control_clamp", {"weight": -1.0}, "weight: got -1.0, expected above 0"),
        ("advantage_penalty", {"weight": float("nan")}, "weight: got nan, expected above 0"),
        ("off_policy", {"count": 0}, "count: got 0, expected at least 1 rollout"),
        ("erroneous", {"updates": 0}, "updates: got 0, expected at least 1"),
        ("reflection", {"teacher": "ftp://x"}, "got address 'ftp://x', expected http:// or https://"),
    ],
)
def test_a_knob_out_of_range_is_refused(name: str, knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(INTERVENTIONS, name, "intervention")(**knobs)


@pytest.mark.parametrize("name", ["off_policy", "hint"])
def test_rollouts_of_a_plain_trainer_cannot_be_guided(tmp_path: Path, answering: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got GRPOTrainer, whose rollouts nobody can guide, expected"):
        closed_loop(tmp_path, answering, name)
    assert not (tmp_path / "run").exists()


def test_a_model_is_taught_before_rl(tmp_path: Path, answering: Path) -> None:
    """Broken before step 1: the supervised updates bring it back, and RL finds it whole."""

    def broken(trainer: Any) -> None:
        trainer.model.lm_head.weight.data.neg_()

    act = SFTFirst(learning_rate=1e-2, updates=30, batch=8)
    closed_loop(tmp_path, answering, act, begun=broken, break_at=99, max_steps=2, per_device_train_batch_size=16)
    with closing(open_run(tmp_path / "run")) as run:
        applied, effect = run.applied()
        assert [record.metrics["reward"] > 0.9 for record in run.records()] == [True, True]
    assert (applied.step, applied.schedule, applied.detail["updates"]) == (0, "first", 30)
    assert applied.detail["prompts"] == applied.detail["dialogues"] == 4 * len(PROMPTS)
    assert applied.detail["loss_after"] < 0.1 < applied.detail["loss_before"]
    assert effect.detail["streams"]["reward"] == {"before": None, "after": 1.0}
