"""Teachers: what a local one says, and an endpoint that answers, hangs, babbles, refuses or costs too much."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.interventions.base import Training
from collapsewatch.interventions.reflection import Reflection
from collapsewatch.interventions.sft import TokenRow
from collapsewatch.interventions.teachers import LONGEST, Case, Endpoint, Local, Teacher, TeacherError
from collapsewatch.queries import open_run
from collapsewatch.schedules import Triggered
from tests.closed_loop import closed_loop

CASE = Case("2 + 3 ?", ["call(2)", "The sum is 6."], "call(2)\n2\nThe sum is 6.", ["call(2)", "The sum is 5."])


def completion(content: Any, tokens: int | None = 7) -> bytes:
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return json.dumps({"choices": [{"message": {"content": content}}], **usage}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, self.headers.get("Authorization"), body))
        server.answer(self)

    def say(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.asked, made.gone = True, [], threading.Event()
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.gone.set()
    made.shutdown()
    made.server_close()
    thread.join()


def test_the_local_teacher_names_the_first_wrong_turn() -> None:
    assert Local().reflect(CASE) == "Turn 2 is wrong: The sum is 6.\nRight: The sum is 5."
    short = Case("", ["call(2)"], "", CASE.right)
    assert Local().reflect(short) == "Turn 2 is missing.\nRight: The sum is 5."
    with pytest.raises(TeacherError, match="every turn is the expert's own"):
        Local().reflect(Case("", CASE.right, "", CASE.right))


def test_an_endpoint_is_asked_as_openai_s_api_is(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    server.answer = lambda handler: handler.say(completion(" Turn 2: 2 + 3 is 5. "))
    teacher = Endpoint(server.url + "/", "some-model", key_variable="TEACHER_KEY", max_tokens=99)
    assert teacher.reflect(CASE) == "Turn 2: 2 + 3 is 5." and teacher.tokens == 7
    ((path, key, body),) = server.asked
    assert (path, key, body["model"], body["max_tokens"]) == ("/v1/chat/completions", "Bearer secret", "some-model", 99)
    (message,) = body["messages"]
    assert message["role"] == "user" and all(part in message["content"] for part in (CASE.asked, CASE.log, *CASE.right))


def hang(handler: Any) -> None:
    handler.server.gone.wait(30)


def trickle(handler: Any) -> None:
    """Never silent for as long as the time-out, and never done."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while not handler.server.gone.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        pass


BAD: list[tuple[str, Callable[[Any], None], str]] = [
    ("timeout", hang, "no answer within 0.3 s"),
    ("timeout", trickle, "no answer within 0.3 s"),
    ("refused", lambda handler: handler.say(b"{}", 500), "HTTP 500"),
    ("refused", lambda handler: handler.say(b"", 302), "HTTP 302"),
    ("garbage", lambda handler: handler.say(b"<html>"), "JSONDecodeError"),
    ("garbage", lambda handler: handler.say(b"\xff\xfe"), "Error: "),
    ("garbage", lambda handler: handler.say(b'{"choices": []}'), "IndexError"),
    ("garbage", lambda handler: handler.say(b"[1]"), "TypeError"),
    ("garbage", lambda handler: handler.say(completion(None)), "content of type NoneType, expected text"),
    ("garbage", lambda handler: handler.say(completion("  ")), "content of type str, expected text"),
    ("too_long", lambda handler: handler.say(completion("x" * (LONGEST + 1))), "8001 characters, expected at most"),
    ("too_long", lambda handler: handler.say(b" " * 30_000), "more than 20000 bytes"),
    ("unreachable", lambda handler: handler.connection.close(), "RemoteDisconnected|ConnectionResetError"),
]


@pytest.mark.parametrize(("kind", "answer", "said"), BAD, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(BAD)])
def test_what_is_no_reflection_is_an_error_of_its_kind(server: Any, kind: str, answer: Any, said: str) -> None:
    server.answer = answer
    teacher = Endpoint(server.url, "m", timeout=0.3, most_bytes=20_000)
    with pytest.raises(TeacherError, match=said) as error:
        teacher.reflect(CASE)
    assert error.value.kind == kind and len(server.asked) == 1


def test_nobody_is_asked_beyond_the_budget(server: Any) -> None:
    server.answer = lambda handler: handler.say(completion("x" * 40, None))
    teacher = Endpoint(server.url, "m", budget=300)
    spent = []
    while True:
        try:
            teacher.reflect(CASE)
        except TeacherError as error:
            assert error.kind == "budget" and f"{teacher.tokens} of 300" in str(error)
            break
        spent.append(teacher.tokens)
    # Without an account, 4 characters are a token.
    length = len(server.asked[0][2]["messages"][0]["content"]) + 40
    assert spent == [length // 4 * (i + 1) for i in range(len(spent))] and len(server.asked) == len(spent)
    with pytest.raises(TeacherError, match="tokens are spent"):
        teacher.reflect(CASE)
    with pytest.raises(TeacherError, match="Connection") as error_info:
        Endpoint("http://127.0.0.1:1", "m", timeout=2).reflect(CASE)
    assert error_info.value.kind == "unreachable"


class Moody(Teacher):
    """Fails in a way of its own, then answers, then has cost too much."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def reflect(self, case: Case) -> str:
        self.cases.append(case)
        self.tokens += 10
        if len(self.cases) == 1:
            raise ZeroDivisionError("moody")
        if len(self.cases) > 2:
            raise TeacherError("budget", "spent")
        return "Say ok.<|im_end|>"


@pytest.mark.usefixtures("one_path")
def test_reflections_are_learnt_and_failures_are_rows_and_metrics(tmp_path: Path, answering: Path) -> None:
    teacher = Moody()
    act = Reflection(teacher, reflections=4, learning_rate=1e-2, updates=20, batch=8)
    learnt: list[Any] = []
    learn = act._learner.learn
    act._learner.learn = lambda rows, training: learnt.extend(rows) or learn(rows, training)  # type: ignore
    held = {"per_device_train_batch_size": 16, "max_steps": 9}
    done = closed_loop(tmp_path, answering, act, Triggered(20), break_at=4, **held)
    assert not done.faults
    with closing(open_run(tmp_path / "run")) as run:
        applied, moody, spent, effect = run.applied()
        counts = [run.series(f"teacher/{name}").max[-1] for name in ("failures", "tokens")]
    assert (applied.status, moody.status, spent.status, effect.status) == ("applied", "failed", "skipped", "effect")
    assert moody.detail == {"teacher": "garbage", "count": 1, "reason": "ZeroDivisionError: moody"}
    assert spent.detail == {"teacher": "budget", "count": 2, "reason": "spent"}
    assert counts == [3, 40]
    assert effect.detail["streams"]["reward"]["after"] > 0.9  # the expert's dialogues do it without the teacher
    # What was asked is what was sampled; what is learnt ends in one end token, and in none before.
    case, tokenizer = teacher.cases[1], done.trainer.processing_class
    assert case.right == ["ok"] and case.turns[0].startswith("</tool_call>") and case.asked
    decoded = [tokenizer.decode(row.ids) for row in learnt]
    (row,) = (row for row, whole in zip(learnt, decoded, strict=True) if "went wrong" in whole)
    text = [token for token, own in zip(row.ids, row.mask, strict=True) if own]
    assert tokenizer.decode(text) == "Say ok.<|im_end|>".replace("S", "") or tokenizer.decode(text).endswith(
        "<|im_end|>"
    )
    assert text.count(tokenizer.eos_token_id) == 1 and row.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.ids[: row.mask.index(1)]).startswith(case.asked)


def test_few_updates_learn_of_reflections_too(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, said = [TokenRow([1], [1])] * 4, [TokenRow([2], [1])] * 4
    training, mixed = Training(None, None, schedule="synchronous"), 0
    for seed in range(20):
        act = Reflection(updates=1, batch=4, seed=seed)
        monkeypatch.setattr(act._learner, "expert", lambda prompts, training: expert)
        monkeypatch.setattr(act._learner, "learn", lambda rows, training: {"rows": rows})
        monkeypatch.setattr(act, "more", lambda prompts, training: said)
        act._failed.append([{"prompt": "x"}])
        rows = act.apply(1, training)["rows"]
        assert sorted(rows, key=lambda row: row.ids) == [*expert, *said]
        mixed += len({row.ids[0] for row in rows[:4]}) == 2
    assert mixed >= 15  # all of one kind: one draw in 35


def test_patience_ends() -> None:
    class Slow(Teacher):
        def reflect(self, case: Case) -> str:
            time.sleep(0.05)
            return "so"

    said, failed = Reflection(Slow(), patience=0.02)._ask([CASE] * 5)
    assert len(said) == 1 and failed == {("timeout", "0.02 s of patience are over"): 4}
