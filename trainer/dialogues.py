"""Dialogues as token ids: rendered piece by piece through the chat template, never decoded and re-encoded.

A dialogue is its prompt, then turns of the model and what the environment adds between them. Each piece is
tokenized once, on its own, so sampled ids stay exactly as sampled and expert turns get the ids they would have
had if the model had sampled their text.

A dialogue may be written in another chat format than the template's own: then its calls are text, a system message
says how to write them, and tools answer as the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collapsewatch.formats.base import ChatFormat
from collapsewatch.interventions.sft import TokenRow
from collapsewatch.records import Call

from .environments.base import Environment, Message, Task

Tools = Sequence[dict[str, Any]]
_SAID = "(said before)"
_DUMMY: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]


class TemplateError(ValueError):
    """A chat template that dialogues cannot be rendered with: what, got, expected."""


BRIDGES = 10_000
"""Rendered tool answers that are kept: short ones, as in `chain`, come again and again."""


class Renderer:
    """Renders one environment's messages with one tokenizer's chat template.

    `writer`: the chat format that calls are written in, instead of the template's own. `template`: what its template is
    told besides, as `enable_thinking`.

    Raises:
        TemplateError: the template does not end a turn by the tokenizer's end token, or the format knows no such end.
    """

    def __init__(
        self,
        tokenizer: Any,
        environment: Environment,
        writer: ChatFormat | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.environment, self.writer = tokenizer, environment, writer
        self._template = dict(template or {})
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

        if writer is not None and writer.role.get(self.end_text) != "end":
            ends = " ".join(text for text, role in writer.role.items() if role == "end")
            raise TemplateError(
                f"chat format: got {writer.name}, whose turns end by one of {ends}, expected one that ends them by "
                f"{self.end_text}"
            )

    def _text(self, messages: Sequence[Message], tools: Tools | None = None, *, generate: bool) -> str:
        offered = self._tools if tools is None else list(tools)
        if self.writer is not None:
            messages = in_format(messages, offered, self.writer)
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            tools=offered if self.writer is None else None,
            add_generation_prompt=generate,
            tokenize=False,
            **self._template,
        )
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt(self, messages: Sequence[Message], tools: Tools | None = None) -> list[int]:
        """Ids of the opening messages, up to and including the assistant header; `tools`: as in `Task`."""
        return self._ids(self._text(messages, tools, generate=True))

    def turn(self, history: Sequence[Message], message: Message, tools: Tools | None = None) -> list[int]:
        """Ids of one assistant message after `history`, its end-of-turn token included."""
        before = self._text(history, tools, generate=True)
        after = self._text([*history, message], tools, generate=False)
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
            text = self._text([*_DUMMY, *messages], generate=True)
            behind = text[text.index(_SAID) + len(_SAID) :]
            self._bridges[key] = self._ids(behind.partition(self.end_text)[2])
        return self._bridges[key]

    def expert_row(self, environment: Environment, task: Task) -> TokenRow:
        """An expert dialogue of `task`, the model's own turns marked for learning."""
        history: list[Message] = list(task.prompt)
        ids = self.prompt(history, task.tools)
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
            turn = self.turn(history, message, task.tools)
            ids, mask = ids + turn, mask + [1] * len(turn)
            history.append(message)
        return TokenRow(ids, mask)


def in_format(messages: Sequence[Message], tools: Sequence[dict[str, Any]], writer: ChatFormat) -> list[Message]:
    """A dialogue with its calls written out as text: what no chat template has to know of.

    What is said beside a call is left out, since most formats take nothing there.
    """
    told: list[Message] = [{"role": "system", "content": how_to_call(tools, writer)}]
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "system":
            told[0] = {"role": role, "content": f"{content}\n{told[0]['content']}"}
        elif role == "tool":
            result = f"Result: {content}"
            if told[-1].get("results"):
                result = f"{told.pop()['content']}\n{result}"
            told.append({"role": "user", "content": result, "results": True})
        elif role == "assistant":
            functions = [call["function"] for call in message.get("tool_calls") or ()]
            calls = [Call(function["name"], function["arguments"]) for function in functions]
            told.append({"role": role, "content": writer.write(calls) if calls else writer.answer(content)})
        else:
            told.append(message)
    return [{"role": message["role"], "content": message["content"]} for message in told]


_EXAMPLES: dict[str, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}


def how_to_call(tools: Sequence[dict[str, Any]], writer: ChatFormat) -> str:
    """The system text of a dialogue in `writer`'s format: the tools, and the first of them called as an example."""
    functions = [tool["function"] for tool in tools]
    kinds = [
        {key: str(value.get("type", "any")) for key, value in function["parameters"]["properties"].items()}
        for function in functions
    ]
    lines = [
        f"{function['name']}({', '.join(f'{key}: {kind}' for key, kind in of.items())}): {function['description']}"
        for function, of in zip(functions, kinds, strict=True)
    ]
    example = Call(functions[0]["name"], {key: _EXAMPLES.get(kind, "...") for key, kind in kinds[0].items()})
    lines += ["To call a tool, write the call and nothing else:", writer.write([example]).strip()]
    if writer.answer("") != "":
        lines += ["To answer:", writer.answer("...")]
    return "\n".join(lines)
