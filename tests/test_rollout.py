"""The rollout loop in token ids, held against the chat template; and real trainings of a few seconds."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.formats.base import BoundFormat
from collapsewatch.interventions.sft import TokenRow
from collapsewatch.queries import open_run
from collapsewatch.records import Call
from collapsewatch.trainer.config import ConfigError, TrainConfig
from collapsewatch.trainer.dialogues import Renderer, TemplateError
from collapsewatch.trainer.environments import Environment, Episode, Task
from collapsewatch.trainer.environments.chain import Chain, ChainEpisode
from collapsewatch.trainer.models import tiny_tokenizer
from collapsewatch.trainer.rollout import Generate, rollout
from collapsewatch.trainer.train import check, train

CHAIN = Chain()


def turns(row: TokenRow) -> Iterator[tuple[int, int]]:
    """Spans of the model's own turns."""
    edges = [i for i in range(1, len(row.mask)) if row.mask[i] != row.mask[i - 1]] + [len(row.mask)]
    return zip(edges[::2], edges[1::2], strict=True)


def experts(rows: Sequence[TokenRow]) -> Generate:
    """A sampler that knows the expert's next turn after exactly the expert's ids, and after nothing else."""
    known = {tuple(row.ids[:begin]): list(row.ids[begin:end]) for row in rows for begin, end in turns(row)}

    def generate(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        sampled = [known[tuple(prompt)] for prompt in prompts]
        return sampled, [[-float(i + 1) for i in range(len(ids))] for ids in sampled]

    return generate


def says(renderer: Renderer, *texts: str) -> Generate:
    """A sampler that says `texts` turn by turn, to everybody."""
    script = iter(texts)

    def generate(prompts: list[list[int]]) -> tuple[list[list[int]], None]:
        ids = renderer.tokenizer(next(script), add_special_tokens=False)["input_ids"]
        return [list(ids) for _ in prompts], None

    return generate


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call><|im_end|>'


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_an_expert_played_through_the_loop_gives_the_experts_ids(
    renderer: Renderer, hermes: BoundFormat, seed: int
) -> None:
    tasks = CHAIN.tasks(6, seed)
    rows = [renderer.expert_row(CHAIN, task) for task in tasks]
    played = rollout(tasks, CHAIN, renderer, hermes, experts(rows), max_turns=20)
    for task, row, trajectory in zip(tasks, rows, played, strict=True):
        assert trajectory.prompt_ids + trajectory.ids == row.ids
        assert [0] * len(trajectory.prompt_ids) + trajectory.mask == row.mask
        assert (trajectory.reward, trajectory.env_errors) == (1.0, 0)
        # The oracle: the whole dialogue through the chat template at once, as text.
        whole = renderer.tokenizer.apply_chat_template(
            [*task.prompt, *CHAIN.expert(task)], tools=list(CHAIN.tools), tokenize=False
        )
        assert renderer.tokenizer.decode(row.ids) + "\n" == whole
        for begin, end in turns(row):
            assert row.ids[end - 1] == renderer.end_id and row.ids[begin - 1] != renderer.end_id


def test_log_probs_stand_beside_the_tokens_they_belong_to(renderer: Renderer, hermes: BoundFormat) -> None:
    tasks = CHAIN.tasks(5, 3)
    rows = [renderer.expert_row(CHAIN, task) for task in tasks]
    for row, trajectory in zip(rows, rollout(tasks, CHAIN, renderer, hermes, experts(rows), max_turns=20), strict=True):
        expected = [0.0] * len(row.ids)
        for begin, end in turns(row):
            expected[begin:end] = [-float(i + 1) for i in range(end - begin)]
        assert trajectory.logprobs == expected[len(trajectory.prompt_ids) :]


def test_a_turn_that_is_not_whole_ends_the_episode_without_reward(renderer: Renderer, hermes: BoundFormat) -> None:
    task = CHAIN.tasks(1, 0)[0]
    right = f"The sum is {task.data['answer']}."
    for text in (
        right,  # cut off before its end token
        call("lookup", '{"key": ')[: -len("<|im_end|>")],
        call("lookup", '{"key": "ash"'),
        f"<tool_call>{right}<|im_end|>",
        f"</tool_call>{right}<|im_end|>",
        f"{right}<tool_response><|im_end|>",
        "<|im_end|>",
    ):
        (trajectory,) = rollout([task], CHAIN, renderer, hermes, says(renderer, text), max_turns=5)
        assert renderer.tokenizer.decode(trajectory.ids) == text  # kept as sampled
        assert trajectory.mask == [1] * len(trajectory.ids)
        assert (trajectory.reward, trajectory.env_errors) == (0.0, 0), text
    (whole,) = rollout([task], CHAIN, renderer, hermes, says(renderer, f"{right}<|im_end|>"), max_turns=5)
    assert whole.reward == 1.0


def test_an_error_text_goes_on_with_the_episode(renderer: Renderer, hermes: BoundFormat) -> None:
    task = CHAIN.tasks(1, 0)[0]
    texts = call("lookup", "{}"), call("add", '{"a": 1, "b": "2"}'), f"{task.data['answer']}<|im_end|>"
    (trajectory,) = rollout([task], CHAIN, renderer, hermes, says(renderer, *texts), max_turns=5)
    text = renderer.tokenizer.decode(trajectory.ids)
    assert "error: unknown key" in text and "error: a and b must be integers" in text
    assert (trajectory.reward, trajectory.env_errors) == (1.0, 0)
    own = [token for token, mine in zip(trajectory.ids, trajectory.mask, strict=True) if mine]
    assert renderer.tokenizer.decode(own) == "".join(texts)


def test_parallel_calls_are_all_answered(renderer: Renderer, hermes: BoundFormat) -> None:
    task = CHAIN.tasks(1, 0)[0]
    two = "\n".join(call("add", f'{{"a": {a}, "b": 1}}').removesuffix("<|im_end|>") for a in (1, 6))
    script = says(renderer, f"{two}<|im_end|>", "done<|im_end|>")
    (trajectory,) = rollout([task], CHAIN, renderer, hermes, script, max_turns=5)
    text = renderer.tokenizer.decode(trajectory.ids)
    assert "<tool_response>\n2\n</tool_response>\n<tool_response>\n7\n</tool_response>" in text


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_no_episode_has_more_turns_than_allowed(limit: int, renderer: Renderer, hermes: BoundFormat) -> None:
    asked = []
    speak = says(renderer, *[call("add", '{"a": 1, "b": 1}')] * 9)

    def generate(prompts: list[list[int]]) -> Any:
        asked.append(len(prompts))
        return speak(prompts)

    played = rollout(CHAIN.tasks(3, 0), CHAIN, renderer, hermes, generate, limit)
    assert asked == [3] * limit
    for trajectory in played:
        assert trajectory.ids.count(renderer.end_id) == 2 * limit - 1  # answers end with one too
        assert trajectory.mask[-1] == 1 and trajectory.reward == 0.0  # nothing waits for an answer


class Broken(Chain):
    """A chain whose table service is down: lookups and, at the third task, rewards raise."""

    def start(self, task: Task) -> ChainEpisode:
        return BrokenEpisode(task)


class BrokenEpisode(ChainEpisode):
    def call(self, call: Call) -> str:
        if call.name == "lookup":
            raise ConnectionError("no table service")
        return super().call(call)

    def reward(self) -> float:
        if self._answer == "boom":
            raise KeyError("answer")
        return super().reward()


def test_an_environments_failure_is_counted_and_never_a_reward(renderer: Renderer, hermes: BoundFormat) -> None:
    tasks = CHAIN.tasks(3, 0)
    texts = [call("lookup", '{"key": "ash"}'), f"{tasks[1].data['answer']}<|im_end|>", "boom<|im_end|>"]

    def generate(prompts: list[list[int]]) -> tuple[list[list[int]], None]:
        return [list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts], None

    played = rollout(tasks, Broken(), renderer, hermes, generate, max_turns=1)
    assert [trajectory.env_errors for trajectory in played] == [1, 0, 1]
    assert [trajectory.reward for trajectory in played] == [None, 1.0, None]


def test_a_tokenizer_that_never_writes_its_end_token_is_refused() -> None:
    tokenizer = tiny_tokenizer(CHAIN)
    tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(TemplateError, match=r"got end-of-turn token '<\|endoftext\|>', which its chat template never"):
        Renderer(tokenizer, CHAIN)


# -- real trainings --------------------------------------------------------------------------------------------


class Habit(Environment):
    """Answers `yes` or `no`, and only `yes` is rewarded; its expert says either, so RL has something to learn."""

    name: ClassVar[str] = "habit"
    tools: ClassVar[Sequence[dict[str, Any]]] = ()

    def tasks(self, count: int, seed: int) -> list[Task]:
        return [Task(({"role": "user", "content": "well ?"},), {"say": ["no", "yes"][i % 2]}) for i in range(count)]

    def start(self, task: Task) -> Episode:
        return HabitEpisode()

    def expert(self, task: Task) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": task.data["say"]}]


class HabitEpisode(Episode):
    said = ""

    def call(self, call: Call) -> str:
        return "error: no tools"

    def reply(self, text: str) -> str | None:
        self.said = text
        return None

    def reward(self) -> float:
        return float(self.said == "yes")


class FlakyHabit(Habit):
    """Cannot judge a `no`."""

    def start(self, task: Task) -> Episode:
        return FlakyHabitEpisode()


class FlakyHabitEpisode(HabitEpisode):
    def reward(self) -> float:
        if self.said == "no":
            raise TimeoutError("the judge did not answer")
        return super().reward()


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("COLLAPSEWATCH_CACHE")
    os.environ["COLLAPSEWATCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("COLLAPSEWATCH_CACHE")
    if before is not None:
        os.environ["COLLAPSEWATCH_CACHE"] = before


def small(tmp_path: Path, environment: type[Environment], **knobs: Any) -> TrainConfig:
    """Three words a turn, sixteen rollouts a step, from a warm start of a few batches."""
    sizes: dict[str, Any] = {"warm_start": 30, "steps": 3, "prompts": 2, "rollouts": 8, "max_turn_tokens": 4}
    return TrainConfig(
        name="small", logdir=str(tmp_path), environment=f"{__name__}:{environment.__name__}", **{**sizes, **knobs}
    )


def test_training_raises_the_reward_and_keeps_everything(tmp_path: Path) -> None:
    seen = []
    config = small(tmp_path, Habit, steps=12, learning_rate=3e-3, seed=1)
    run_dir = train(config, on_record=lambda record, alarms, applied: seen.append(record.metrics["reward"]))
    assert run_dir == tmp_path / "small" and (run_dir / "config.toml").read_text() == config.to_toml()
    assert sum(seen[:2]) / 2 < 0.8 < sum(seen[-3:]) / 3  # the expert says yes half of the time
    with closing(open_run(run_dir)) as run:
        assert run.status() == "finished"
        records = list(run.records(detail=True))
        assert [record.step for record in records] == list(range(1, 13))
        assert [record.metrics["reward"] for record in records] == seen
        for record in records:
            assert len(record.rollouts) == 16
            rewards = [row.reward for row in record.rollouts]
            assert math.isclose(sum(rewards) / 16, record.metrics["reward"], rel_tol=1e-6)
            for row in record.rollouts:
                assert not row.text or row.reward == float(row.text.removesuffix("<|im_end|>") == "yes")


def test_training_twice_from_one_seed_gives_one_course(tmp_path: Path) -> None:
    courses = []
    for name in ("one", "two"):
        course: list[Any] = []
        config = small(tmp_path / name, Habit, seed=5)
        train(config, on_record=lambda record, alarms, applied, into=course: into.append(record.rollouts))
        courses.append(course)
    assert courses[0] == courses[1] and len(courses[0]) == 3


def test_rollouts_the_environment_failed_are_counted_and_have_no_reward(tmp_path: Path) -> None:
    run_dir = train(small(tmp_path, FlakyHabit, seed=1))
    with closing(open_run(run_dir)) as run:
        rows = run.query("SELECT env_errors, reward, advantage, structure FROM rollouts").rows
        assert run.status() == "finished"
    failed = [row for row in rows if row[0]]
    assert 0 < len(failed) < len(rows)
    assert all(errors == 1 and math.isnan(reward) and advantage == 0 for errors, reward, advantage, _ in failed)
    assert all(reward in (0.0, 1.0) for errors, reward, _, _ in rows if not errors)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    check(small(tmp_path, Habit))
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"name: got 'small', which exists in .*, expected a new name"):
        train(small(tmp_path, Habit))
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["notes.txt"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_what_trl_refuses_leaves_the_name_free(tmp_path: Path) -> None:
    config = small(tmp_path, Habit, vllm=True, warm_start=0)
    with pytest.raises(ConfigError, match=r"config: got what TRL refuses .*vLLM"):
        train(config)
    check(config)
