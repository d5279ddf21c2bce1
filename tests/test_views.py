"""Rollouts token by token, and what a step's own measurements say of the measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trl import GRPOTrainer

from collapsewatch.callback import CollapseCallback
from collapsewatch.formats import format_named
from collapsewatch.formats.base import BoundFormat
from collapsewatch.measure import measure_rank
from collapsewatch.queries import Run, open_run
from collapsewatch.rollouts import Rollouts
from collapsewatch.selftest import complaints
from collapsewatch.views import KEPT, REMEMBERED, ViewKeeper
from tests.trl_training import train


@pytest.fixture(scope="module")
def bound(tokenizer: Any) -> BoundFormat:
    return format_named("hermes").bind(tokenizer)


def rollouts(bound: BoundFormat, tokenizer: Any, n: int, first: int = 0) -> Rollouts:
    """Pairs of rollouts of one prompt; the control tokens are likelier, so the hazard higher, in later ones."""
    text = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>ab<|im_end|>'
    ids = np.tile(tokenizer.encode(text, add_special_tokens=False), (n, 1))
    mask = np.ones_like(ids, bool)
    mask[:, 3] = False
    logp = np.log(np.linspace(0.001, 0.1, n))[:, None, None] + np.zeros((*ids.shape, len(bound.probe_ids)))
    return Rollouts(
        ids=ids,
        mask=mask,
        logp=logp,
        entropy=None,
        group=np.arange(n) // 2,
        reward=np.zeros(n),
        advantage=np.arange(n) / 8,
        env_errors=np.zeros(n, int),
        row=np.arange(n) + first,
        length=np.full(n, ids.shape[1] - 1),
        label_logp=-np.arange(ids.size).reshape(ids.shape) / 100,
    )


def prompt(number: int) -> str:
    return f"prompt {number // 2}"


def take(keeper: ViewKeeper, bound: BoundFormat, tokenizer: Any, step: int, n: int = 16) -> Any:
    r = rollouts(bound, tokenizer, n, first=16 * step)
    return r, keeper.take(step, r, measure_rank(r, bound).rollouts, lambda number: prompt(number - 16 * step))


def test_one_rollout_of_the_same_prompts_is_kept_at_every_step(bound: BoundFormat, tokenizer: Any) -> None:
    keeper = ViewKeeper(bound, lambda i: tokenizer.decode([i]), 0.5)
    kept = []
    for step in (1, 2, 3):
        _, views = take(keeper, bound, tokenizer, step)
        kept.append([view.rollout - 16 * step for view in views])
    assert kept[0] == kept[1] == kept[2] and 0 < len(kept[0]) <= KEPT
    assert all(number % 2 for number in kept[0])  # the more hazardous one of each pair
    for share, count in ((0.0, 0), (1.0, KEPT)):
        assert len(take(ViewKeeper(bound, str, share), bound, tokenizer, 1)[1]) == count


def test_a_view_holds_what_was_measured_at_every_token(bound: BoundFormat, tokenizer: Any) -> None:
    keeper = ViewKeeper(bound, lambda i: tokenizer.decode([i]), 1.0)
    r, (view, *_) = take(keeper, bound, tokenizer, 0, n=2)
    ids = r.ids[1, :-1]
    assert view.rollout == 1 and view.advantage == 1 / 8 and view.token == tuple(ids)
    assert "".join(view.piece) == tokenizer.decode(ids)
    assert view.logp == tuple(r.label_logp[1, :-1]) and np.isnan(view.entropy).all() and len(view.entropy) == len(ids)
    control = np.reshape(view.control, (len(ids), len(view.names)))
    np.testing.assert_array_equal(control, r.logp[1, :-1])
    assert view.slot[:5] == ("start", "open", "open", "", "start") and view.turn[:5] == (0, 0, 0, -1, 1)


def test_suspects_wait_for_their_alarm_and_are_given_once(bound: BoundFormat, tokenizer: Any) -> None:
    keeper = ViewKeeper(bound, lambda i: tokenizer.decode([i]), 0.0)
    for step in range(1, 41):
        take(keeper, bound, tokenizer, step)
    found = [(step, view.rollout - 16 * step) for step, view in keeper.suspects()]
    assert found == [(step, number) for step in range(41 - REMEMBERED, 41) for number in (15, 14)]
    assert keeper.suspects() == []


def views(run: Run) -> list[tuple[Any, ...]]:
    columns = "step, rollout, token, slot, turn, logp, entropy, names, control, advantage"
    return run.query(f"SELECT {columns} FROM tokens").rows


def test_a_training_keeps_views_that_agree_with_its_rows(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run", keep_tokens=1.0, keep_text=0))
    run = open_run(tmp_path / "run")
    rows = {(r.step, row.rollout): row for r in run.records(detail=True) for row in r.rollouts}
    found = views(run)
    assert len(found) == 4  # of two prompts at each of two steps
    for step, rollout, token, slot, turn, logp, entropy, names, control, advantage in found:
        row = rows[step, rollout]
        assert tokenizer.decode(token) == row.text and row.prompt and advantage == pytest.approx(row.advantage)
        assert len(token) == len(slot) == len(turn) == len(logp) == len(entropy) == len(control) / len(names)
        p = np.reshape(control, (len(token), len(names)))
        for t, i in enumerate(token):  # a sampled control token: its column is the trained log-prob itself
            piece = tokenizer.decode([i])
            if piece in names:
                assert p[t, names.index(piece)] == pytest.approx(logp[t], abs=1e-5)


def test_an_alarm_stores_the_rollouts_behind_it(
    tmp_path: Path, model_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collapsewatch.detectors import Detection
    from collapsewatch.records import Alarm, Tier

    def alarmed(self: Detection, record: Any) -> Any:
        found = [Alarm(3, Tier.ALARM, "e_detector", (), 2, 9.0, 5.0)] if record.step == 3 else []
        return found, []

    monkeypatch.setattr(Detection, "update", alarmed)
    train(tmp_path, model_path, tokenizer, CollapseCallback(tmp_path, "run", keep_tokens=0.0), max_steps=4)
    run = open_run(tmp_path / "run")
    stored = {(step, rollout) for step, rollout, *_ in views(run)}
    worst = set()
    for record in list(run.records(detail=True))[:3]:
        ranked = sorted(record.rollouts, key=lambda row: -row.hazard)
        worst |= {(record.step, row.rollout) for row in ranked[:2]}
    assert stored == worst


def test_trained_ids_that_were_not_sampled_are_told(tmp_path: Path, model_path: Path, tokenizer: Any) -> None:
    """Decoding, stripping and encoding again, then appending an end: the paper's code does it to every turn."""
    whole = GRPOTrainer._generate
    end = tokenizer.eos_token_id
    changes = {"as sampled": lambda ids: ids, "cut short": lambda ids: ids[:-1], "other": lambda ids: [*ids[1:], end]}
    for name, change in changes.items():

        def generate(self: Any, prompts: Any, change: Any = change) -> Any:
            out = whole(self, prompts)
            return (out[0], [change(list(ids)) for ids in out[1]], *out[2:])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GRPOTrainer, "_generate", generate)
            train(tmp_path / name, model_path, tokenizer, CollapseCallback(tmp_path, name), max_steps=1)
        run = open_run(tmp_path / name)
        (record,) = run.records()
        assert record.metrics["sampling/altered"] == (name == "other")
        notices = [event.detail for event in run.events() if event.name == "notice"]
        assert any("other ids than were sampled" in text for text in notices) == (name == "other")


def test_complaints() -> None:
    names = ("probe/max_error", "sampling/altered", "probe/calibration", "sampling/logp_gap_control")
    fine = dict(zip(names, (1e-3, 0.0, -3.0, 0.02), strict=True))
    assert complaints(fine, True) == complaints({}, True) == {}
    broken = dict(zip(names, (0.3, 0.5, 9.0, 1.0), strict=True))
    assert complaints(broken, True).keys() == broken.keys()
    assert complaints(broken, False).keys() == broken.keys() - {"probe/calibration"}
    assert complaints(dict.fromkeys(broken, float("nan")), True) == {}
