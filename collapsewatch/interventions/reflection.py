"""`reflection`: `erroneous`, and beside its dialogues what a teacher says of the failed rollouts (the paper's PRS).

A teacher that takes too long, answers garbage or has cost too much is left out: its failures are rows and metrics, and
the expert's dialogues are learnt without it.
Source: arXiv 2606.26027; released code, `process_reward_pr.py` (one rollout a prompt, learnt jointly with ETS rows).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from accelerate.utils import broadcast_object_list

from .base import ROLLOUT, PromptRow, Training
from .erroneous import Erroneous
from .sft import TokenRow
from .teachers import Case, Endpoint, Local, Teacher, TeacherError

LOCAL = "local"


class Reflection(Erroneous):
    """SFT on expert dialogues of failed prompts and on reflections over how they were failed.

    Args:
        teacher: `local`, which compares with the expert and asks nobody; the base address of an OpenAI-compatible API;
            or a `Teacher`.
        model: asked at that address.
        reflections: failed rollouts an application asks about, at most.
        patience: seconds that an application spends on asking, in all.
        knobs: those of `erroneous`.
    """

    name: ClassVar[str] = "reflection"
    wants_text: ClassVar[bool] = True

    def __init__(
        self,
        teacher: str | Teacher = LOCAL,
        model: str = "",
        reflections: int = 16,
        patience: float = 300.0,
        **knobs: Any,
    ) -> None:
        super().__init__(**knobs)
        if isinstance(teacher, str):
            teacher = Local() if teacher == LOCAL else Endpoint(teacher, model)
        self._teacher, self._most, self._patience = teacher, reflections, patience
        self._failures = 0

    def more(self, prompts: Sequence[PromptRow], training: Training) -> list[TokenRow]:
        assert training.expert is not None
        tokenizer = training.tokenizer
        asked = [row for row in prompts if row.get(ROLLOUT)][: self._most]
        solved = [(row, right) for row in asked for right in training.expert([row])]  # an expert may leave rows out
        cases = [_case(row, right, tokenizer) for row, right in solved]
        told: list[Any] = [self._ask(cases) if training.rank == 0 else None, self._teacher.tokens]
        if training.ranks > 1:  # asked once, and learnt by all
            broadcast_object_list(told)
        (said, failed), self._teacher.tokens = told
        for (kind, reason), count in failed.items():
            self._failures += count
            status = "skipped" if kind == "budget" else "failed"
            self.problems.append((status, {"teacher": kind, "count": count, "reason": reason}))
        return [_row(cases[i], text, tokenizer) for i, text in said]

    def _ask(self, cases: Sequence[Case]) -> tuple[list[tuple[int, str]], Counter[tuple[str, str]]]:
        """Each case's number and reflection, and why there are no others."""
        said, failed = list[tuple[int, str]](), Counter[tuple[str, str]]()
        end = time.monotonic() + self._patience
        for number, case in enumerate(cases):
            if time.monotonic() > end:
                failed["timeout", f"{self._patience:g} s of patience are over"] += len(cases) - number
                break
            try:
                said.append((number, self._teacher.reflect(case)))
            except TeacherError as error:
                failed[error.kind, str(error)] += 1
            except Exception as error:  # a teacher of the user's
                failed["garbage", f"{type(error).__name__}: {error}"] += 1
        return said, failed

    def metrics(self) -> dict[str, float]:
        return {"teacher/failures": float(self._failures), "teacher/tokens": float(self._teacher.tokens)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "failures": self._failures, "tokens": self._teacher.tokens}

    def load_state_dict(self, state: Mapping[str, Any], training: Training) -> None:
        super().load_state_dict(state, training)
        self._failures, self._teacher.tokens = state["failures"], state["tokens"]


def _case(row: PromptRow, right: TokenRow, tokenizer: Any) -> Case:
    prompt = row.get("prompt", "")
    asked = prompt if isinstance(prompt, str) else "\n".join(str(message.get("content", "")) for message in prompt)
    pieces = [(own, _plain(text, tokenizer)) for own, text in row[ROLLOUT]]
    return Case(
        asked, [text for own, text in pieces if own], "\n".join(text for _, text in pieces), _turns(right, tokenizer)
    )


def _turns(row: TokenRow, tokenizer: Any) -> list[str]:
    """The turns of a dialogue that are learnt, as text."""
    turns, turn = list[str](), list[int]()
    for token, learnt in zip([*row.ids, 0], [*row.mask, 0], strict=True):
        if learnt:
            turn.append(token)
        elif turn:
            turns.append(_plain(tokenizer.decode(turn), tokenizer))
            turn = []
    return turns


def _plain(text: str, tokenizer: Any) -> str:
    """Text without the tokens that would end a turn or open another one in the middle of a message."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()


def _row(case: Case, reflection: str, tokenizer: Any) -> TokenRow:
    """What was asked and how it went, and the reflection as what the model is to say to it."""
    question = f"{case.asked}\n\n{case.log}\n\nWhich turn went wrong, and what would have been right?"
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": question}]
        question = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    answer = tokenizer(_plain(reflection, tokenizer), add_special_tokens=False)["input_ids"]
    answer = [*answer, tokenizer.eos_token_id]
    return TokenRow([*asked, *answer], [0] * len(asked) + [1] * len(answer))
