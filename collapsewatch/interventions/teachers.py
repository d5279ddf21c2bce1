"""Teachers: who says what went wrong in a failed rollout.

`Local` reads it off the expert's dialogue and asks nobody. `Endpoint` asks a model behind an OpenAI-compatible address,
within limits of time, size and tokens; whatever it fails in is a `TeacherError`, never a lesson.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LONGEST = 8000
"""Characters of a reflection; of what is sent, in each of its parts."""


@dataclass(frozen=True, slots=True)
class Case:
    """A failed rollout: what was asked, `turns` the model's own turns, `log` all of it, `right` the expert's turns."""

    asked: str
    turns: Sequence[str]
    log: str
    right: Sequence[str]


class TeacherError(Exception):
    """No reflection; `kind` is `timeout`, `unreachable`, `refused`, `garbage`, `too_long` or `budget`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Teacher(ABC):
    """Turns a failed rollout into a reflection; `tokens` is what it has cost so far."""

    tokens: int = 0

    @abstractmethod
    def reflect(self, case: Case) -> str:
        """What went wrong, and what would have been right.

        Raises:
            TeacherError: there is no telling.
        """


class Local(Teacher):
    """Names the first turn in which the rollout left the expert's path, and what stands there instead."""

    def reflect(self, case: Case) -> str:
        for number, right in enumerate(case.right, 1):
            told = case.turns[number - 1] if number <= len(case.turns) else ""
            if told != right:
                said = f"Turn {number} is wrong: {told}" if told else f"Turn {number} is missing."
                return f"{said}\nRight: {right}"
        raise TeacherError("refused", "every turn is the expert's own")


class Endpoint(Teacher):
    """Asks `model` at `url`, the base of an OpenAI-compatible API (`.../v1`).

    Args:
        key_variable: environment variable that holds the API key; without it none is sent.
        timeout: seconds that one answer may take, from the request to its last byte.
        max_tokens: that one answer may have.
        budget: tokens, of questions and answers, that all of a run may cost; then it is asked no more.
        most_bytes: of one answer.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_tokens: int = 1024,
        budget: int = 500_000,
        most_bytes: int = 1 << 20,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"teacher: got address {url!r}, expected http:// or https://")
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        self._key_variable, self._timeout, self._max_tokens = key_variable, timeout, max_tokens
        self._budget, self._most_bytes = budget, most_bytes

    def reflect(self, case: Case) -> str:
        if self.tokens >= self._budget:
            raise TeacherError("budget", f"{self.tokens} of {self._budget} tokens are spent")
        question = _question(case)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._max_tokens,
            "temperature": 0.7,  # the released code's
        }
        text, tokens = _answer(self._ask(json.dumps(body).encode()))
        # Who does not say what it costs is taken at 4 characters a token.
        self.tokens += tokens or (len(question) + len(text)) // 4
        if len(text) > LONGEST:
            raise TeacherError("too_long", f"{len(text)} characters, expected at most {LONGEST}")
        return text

    def _ask(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_variable):
            headers["Authorization"] = f"Bearer {key}"
        end = time.monotonic() + self._timeout
        try:
            request = urllib.request.Request(self._url, body, headers)
            with _OPENER.open(request, timeout=self._timeout) as response:
                found = bytearray()
                while part := response.read1(1 << 16):  # each read may take the whole time-out again
                    found += part
                    if len(found) > self._most_bytes:
                        raise TeacherError("too_long", f"more than {self._most_bytes} bytes")
                    if time.monotonic() > end:
                        raise TimeoutError
                return bytes(found)
        except urllib.error.HTTPError as error:
            with error:
                raise TeacherError("refused", f"HTTP {error.code}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise TeacherError("timeout", f"no answer within {self._timeout:g} s") from error
            raise TeacherError("unreachable", f"{type(reason).__name__}: {reason}") from error


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: a key is for the address it was given for."""

    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Here)


def _question(case: Case) -> str:
    right = "\n".join(case.right)
    return (
        "A model that calls tools was asked:\n"
        f"{case.asked[-LONGEST:]}\n\nIt failed. All that happened:\n{case.log[-LONGEST:]}\n\n"
        f"Turns that solve the task:\n{right[-LONGEST:]}\n\n"
        "Say in which turn it went wrong and why, on what evidence, and what it should have written there; then give "
        "two other situations in which the same rule holds, and one that looks alike but needs another tool. "
        "Write every tool call exactly as the turns above write theirs."
    )


def _answer(raw: bytes) -> tuple[str, int]:
    """Text and tokens of a chat completion."""
    try:
        answer: Any = json.loads(raw)
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage")
        tokens = int(usage.get("total_tokens") or 0) if isinstance(usage, Mapping) else 0
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TeacherError("garbage", f"{type(error).__name__}: {error}") from error
    if not isinstance(text, str) or not text.strip():
        raise TeacherError("garbage", f"a content of type {type(text).__name__}, expected text")
    return text.strip(), tokens
