"""Dialogues as token ids: rendered piece by piece through the chat template, never decoded and re-encoded.

A dialogue is its prompt, then turns of the model and what the environment adds between them. Each piece is
tokenized once, on its own, so sampled ids stay exactly as sampled and expert turns get the ids they would have
had if the model had sampled their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collapsewatch.interventions.sft import TokenRow

from .environments.base import Environment, Message, Task

_DUMMY: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]


class TemplateError(ValueError):
    """A chat template that dialogues cannot be rendered with: what, got, expected."""


BRIDGES = 10_000
"""Rendered tool answers that are kept: short ones, as in `chain`, come again and again."""


class Renderer:
    """Renders one environment's messages with one tokenizer's chat template."""

    def __init__(self, tokenizer: Any, environment: Environment) -> None:
        self.tokenizer = tokenizer
        self._tools = list(environment.tools)
        self.end_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.end_text: str = tokenizer.eos_token
        self._bridges: dict[tuple[tuple[str, str], ...], list[int]] = {}
        if self.end_text is None or self.end_text not in self._text(_DUMMY, generate=False):
            raise TemplateError(
                f"tokenizer: got end-of-turn token {self.end_text!r}, which its chat template never writes, "
                "expected the one that ends an assistant message"
            )

    def _text(self, messages: Sequence[Message], *, generate: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tools=self._tools, add_generation_prompt=generate, tokenize=False
        )
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the opening messages, up to and including the assistant header."""
        return self._ids(self._text(messages, generate=True))

    def turn(self, history: Sequence[Message], message: Message) -> list[int]:
        """Ids of one assistant message after `history`, its end-of-turn token included."""
        before = self._text(history, generate=True)
        after = self._text([*history, message], generate=False)
        if not after.startswith(before):
            raise TemplateError("chat template: got a prompt that is no prefix of the dialogue, expected a prefix")
        body, end, _ = after[len(before) :].rpartition(self.end_text)
        return self._ids(body + end)

    def bridge(self, messages: Sequence[Message]) -> list[int]:
        """Ids from after an assistant's end-of-turn token to the next assistant header, `messages` between."""
        key = tuple((m["role"], m["content"]) for m in messages)
        if len(self._bridges) > BRIDGES:  # long tool answers never come twice
            self._bridges.clear()
        if key not in self._bridges:
            before = self._text(_DUMMY, generate=False)
            cut = before.rindex(self.end_text) + len(self.end_text)
            self._bridges[key] = self._ids(self._text([*_DUMMY, *messages], generate=True)[cut:])
        return self._bridges[key]

    def expert_row(self, environment: Environment, task: Task) -> TokenRow:
        """An expert dialogue of `task`, the model's own turns marked for learning."""
        history: list[Message] = list(task.prompt)
        ids = self.prompt(history)
        mask = [0] * len(ids)
        between: list[Message] = []
        for message in environment.expert(task):
            if message["role"] != "assistant":
                between.append(message)
                continue
            if between:
                bridge = self.bridge(between)
                ids, mask = ids + bridge, mask + [0] * len(bridge)
                history, between = [*history, *between], []
            turn = self.turn(history, message)
            ids, mask = ids + turn, mask + [1] * len(turn)
            history.append(message)
        return TokenRow(ids, mask)
