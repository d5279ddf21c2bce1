from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from dash import no_update
from hypothesis import given
from hypothesis import strategies as st
from plotly.io.json import to_json_plotly

import collapsewatch
from collapsewatch.dashboards import DashboardError, create_app, serve, serve_in_thread
from collapsewatch.dashboards.feed import HAZARD_FLOOR, MARKS, Feed, Point, RunFeed
from collapsewatch.dashboards.figures import PANELS, extension, figure, thin
from collapsewatch.dashboards.pages import PAGES, load_page
from collapsewatch.dashboards.pages.overview import (
    age_words,
    card,
    cursor_of,
    log_lines,
    shown_runs,
    state_words,
    tick,
)
from collapsewatch.records import Alarm, Applied, Driver, Event, Evidence, Observation, StepRecord, Tier
from collapsewatch.store import Store
from collapsewatch.theme import line_styles
from collapsewatch.words import cause, escape, plain

EVIL = "<img src=x onerror=window.__xss=1>"
TOKENS = {"<tool_call>": 0.01, "<|im_end|>": 0.0, EVIL: 0.5}
SHARES = {"tool_call": 0.6, "response": 0.3, "polluted": 0.06, "collapsed": 0.04}


def step_record(step: int, reward: float = 0.5) -> StepRecord:
    hazards = {"hazard": sum(TOKENS.values()), "hazard@text": 0.3, "polluted": 0.06}
    hazards |= {f"hazard:{token}": value for token, value in TOKENS.items()}
    return StepRecord(
        step=step,
        time=1000.0 + 2.0 * step,
        metrics={"reward": reward, "parse_rate": 0.97} | {f"structure/{k}": v for k, v in SHARES.items()},
        observations=tuple(Observation(stream, value, 8) for stream, value in hazards.items()),
    )


def alarm(step: int, tier: Tier = Tier.ALARM, stream: str = "hazard:<tool_call>@text") -> Alarm:
    drivers = (Driver("hazard", 0.6, 0.4, 0.01, 0.1), Driver(stream, 0.4, 0.3, 0.01, 0.1))
    return Alarm(step, tier, "e_detector", drivers, step - 2, 6.0, 5.3, "control_token_spike")


def write(store: Store, first: int, last: int) -> None:
    for step in range(first, last + 1):
        store.log_step(step_record(step, reward=step / 100))
        store.log_evidence(Evidence(step, "e_detector", step / 10, 5.3))


def write_run(path: Path, steps: int = 20, alarmed: int = 0, events: bool = True) -> None:
    store = Store(path)
    if events:
        store.log_event(Event(0, 1000.0, "started", json.dumps({"max_steps": 40})))
    write(store, 1, steps)
    if alarmed:
        store.log_alarm(alarm(alarmed))
    if events:
        store.log_event(Event(steps, 1000.0 + 2 * steps, "finished"))
    store.close()


def seen(logdir: Path) -> Feed:
    feed = Feed(logdir)
    feed.refresh()
    return feed


def look_again(feed: Feed) -> None:
    """A refresh that does not wait for the least time between two looks."""
    feed._looked = float("-inf")
    feed.refresh()


def wait_for_step(feed: Feed, key: str, step: int) -> None:
    """Looks until the writer has merged everything up to a step's evidence, its last row."""
    for _ in range(1000):
        look_again(feed)
        if key in feed.runs and any(p.x == step and p.trace == "evidence:e_detector" for p in feed.runs[key].points):
            look_again(feed)  # tables are read in turn: the merge may have come in between
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} of {key} never came")


def said(*components: object) -> str:
    return json.dumps(json.loads(to_json_plotly(list(components))), ensure_ascii=False)


def test_a_run_in_words(tmp_path: Path) -> None:
    write_run(tmp_path / "healthy")
    write_run(tmp_path / "broken", alarmed=12)
    runs = seen(tmp_path).runs
    assert state_words(runs["healthy"]) == ("OK at step 20", "ok")
    assert state_words(runs["broken"]) == ("ALARM since step 10: <tool_call> in text", "alarm")
    headline = said(card(runs["healthy"], now=1100.0))
    for words in ("20 / 40", "finished", "best 0.2 at step 20", "97%", "10%", "last step 1 min ago"):
        assert words in headline
    assert "alarm (e_detector): <tool_call> in text" in said(log_lines(runs["broken"]))


def test_alarm_cleared_and_intervention_streak(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    write(store, 1, 20)
    store.log_alarm(alarm(8))
    for step in (9, 10, 11, 15):
        store.log_applied(Applied(step, "replay", "triggered", 8, "applied"))
    effect = {"streams": {"parse_failure": {"before": 0.9, "after": 0.1}}}
    store.log_applied(Applied(10, "replay", "triggered", 8, "effect", effect))
    store.log_alarm(alarm(18, Tier.CLEARED))
    for tier in (Tier.WATCH, Tier.HOLD, Tier.CLEARED):  # a watch of another detector is no alarm, and ends none
        store.log_alarm(dataclasses.replace(alarm(19, tier), detector="health"))
    store.close()
    run = seen(tmp_path).runs["run"]
    assert state_words(run) == ("OK at step 20, 1 alarm behind it", "ok")
    assert run.action is not None and run.action.words == "intervention replay applied at step 15, 4 times in all"
    assert "intervention replay effect: calls that do not parse 0.9 to 0.1" in [entry.words for entry in run.log]
    # A streak of applications is marked once, where it starts.
    assert [(p.trace, p.x) for p in run.points if p.trace in MARKS] == [
        ("alarm", 8),
        ("cleared", 18),
        ("intervention", 9),
        ("intervention", 15),
    ]


def test_the_headline_names_the_token_that_is_over_its_tolerance() -> None:
    outcome = Driver("collapsed", 0.9, 0.5, 0.01, 0.1)
    summed = Driver("hazard", 0.9, 0.5, 0.01, 0.1)
    over = Driver("hazard:<tool_call>@text", 0.06, 0.5, 0.01, 0.1)
    calm = Driver("hazard:<|im_end|>", 0.04, 0.05, 0.01, 0.1)
    assert cause([outcome, over, calm]) == "collapsed turns, <tool_call> in text"
    assert cause([summed, over, calm]) == "<tool_call> in text"
    assert cause([outcome, calm]) == "collapsed turns"
    assert cause([calm, summed]) == "control tokens where the format forbids them"
    assert cause([]) == "no driver recorded"


def test_silence_is_said_only_of_a_running_run() -> None:
    run = RunFeed("r", Path("r"))
    run.last_time = 1000.0
    run.status = "running"
    assert age_words(run, 1003.0) == ("live", False)
    assert age_words(run, 1034.0) == ("no new data for 34 s", True)
    run._gaps.extend([20.0, 20.0, 20.0])  # a step of 20 s is late after 100 s, not after 34
    assert age_words(run, 1034.0) == ("last step 34 s ago", False)
    run.status = "finished"
    assert age_words(run, 4600.0) == ("last step 1 h ago", False)


def test_figure_plus_extension_is_the_later_figure(tmp_path: Path) -> None:
    """What a browser holds after any number of ticks is what a reload would show it."""
    write_run(tmp_path / "a", steps=12, alarmed=5)
    write_run(tmp_path / "b", steps=9)
    runs = seen(tmp_path).runs
    whole = {key: len(run.points) for key, run in runs.items()}
    for cut in range(0, max(whole.values()), 7):
        until = {key: min(cut, n) for key, n in whole.items()}
        fresh = {key: run.points[until[key] :] for key, run in runs.items()}
        for panel in PANELS:
            for key in runs:
                early, late = figure(panel, key, runs, until), figure(panel, key, runs, whole)
                assert early is not None and late is not None
                added = extension(panel, key, runs, fresh)
                for place, index in enumerate(added[1] if added else []):
                    for name in ("x", "y", "text"):
                        early["data"][index][name].extend(added[0][name][place])
                assert early == late


def test_figures_show_what_was_logged(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=6, alarmed=4)
    runs = seen(tmp_path).runs
    drawn = {panel.name: figure(panel, "a", runs, {"a": len(runs["a"].points)}) for panel in PANELS}
    traces = {name: {t["name"]: t for t in fig["data"]} for name, fig in drawn.items() if fig}
    assert traces["reward"]["a"]["y"] == [step / 100 for step in range(1, 7)]
    assert [traces["structure"][state]["y"] for state in SHARES] == [[share] * 6 for share in SHARES.values()]
    assert traces["hazard"]["&lt;tool_call&gt;"]["y"] == [0.01] * 6
    assert traces["hazard"]["&lt;|im_end|&gt;"]["y"] == [HAZARD_FLOOR] * 6  # a zero on a logarithmic axis ...
    assert traces["hazard"]["&lt;|im_end|&gt;"]["text"] == ["0"] * 6  # ... whose hover text tells the truth
    assert traces["evidence"]["e_detector"]["y"] == pytest.approx([step / 10 - 5.3 for step in range(1, 7)])
    for name in drawn:
        assert traces[name]["alarm"]["x"] == [4]


def test_no_markup_reaches_a_figure(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    write(store, 1, 3)
    store.log_alarm(alarm(2, stream=f"hazard:{EVIL}@text"))
    store.log_applied(Applied(3, EVIL, "triggered", 2, "applied"))
    store.close()
    runs = seen(tmp_path).runs
    for panel in PANELS:
        fig = figure(panel, "run", runs, {"run": len(runs["run"].points)})
        assert fig is not None
        for trace in fig["data"]:
            shown = [trace["name"], trace["hovertemplate"], *trace["text"]]
            assert not re.search(r"<(?!/?extra>|/?b>)", " ".join(shown))


@given(st.text())
def test_escaped_text_holds_no_markup_and_stays_on_a_line(text: str) -> None:
    safe = escape(text)
    assert not set(safe) & set("<>\n\r\x1b\u202e")
    assert len(plain(text)) <= 300


def test_line_styles_are_distinct_and_fixed() -> None:
    tokens = ["<tool_call>", "</tool_call>", "<|im_end|>", *(f"<t{i}>" for i in range(12))]
    styles = line_styles(tokens)
    assert len({(s["color"], s["dash"]) for s in styles.values()}) == len(tokens)
    assert line_styles(["<tool_call>"])["<tool_call>"] == styles["<tool_call>"]


points = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=400).map(
    lambda ys: [Point("t", i, y, str(i)) for i, y in enumerate(ys)]
)


@given(points, st.integers(2, 60))
def test_thinning_keeps_order_and_every_extreme(given_points: list[Point], limit: int) -> None:
    kept = thin(given_points, limit)
    assert len(kept) <= max(limit, 2)
    assert [p.x for p in kept] == sorted({p.x for p in kept})
    assert set(kept) <= set(given_points)
    drawn = [p.y for p in given_points if p.y is not None]
    if drawn:
        shown = [p.y for p in kept if p.y is not None]
        assert (min(shown), max(shown)) == (min(drawn), max(drawn))


def test_a_tick_sends_only_what_is_new(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", flush_s=0.02, merge_s=0.05)
    write(store, 1, 5)
    feed = Feed(tmp_path)
    wait_for_step(feed, "run", 5)
    cursor = cursor_of(feed, shown_runs(feed, None))
    graphs = [{"type": "overview-graph", "panel": p.name, "run": "run"} for p in PANELS]
    logs = [{"type": "overview-log", "run": "run"}]
    write(store, 6, 7)
    wait_for_step(feed, "run", 7)
    body, cursor, _, cards, lines, extended = tick(feed, [], cursor, graphs, logs)
    assert body is no_update and lines == [no_update]
    assert extended[0][0]["x"] == [[6, 7]] and extended[0][0]["y"] == [[0.06, 0.07]]
    assert state_words(feed.runs["run"])[0] in said(cards)
    again = tick(feed, [], cursor, graphs, logs)
    assert again[5] == [no_update] * len(PANELS)  # nothing new: every graph is left as it is
    store.close()


def test_runs_appear_and_can_be_picked(tmp_path: Path) -> None:
    logdir = tmp_path / "not there yet"
    feed = seen(logdir)
    empty = cursor_of(feed, shown_runs(feed, None))
    assert "No runs yet" in said(load_page("overview").body(feed))
    for name in ("a", "b", "c", "d", "e"):
        write_run(logdir / name, steps=int(name, 16) - 8)
    look_again(feed)
    body, cursor, choices, *_ = tick(feed, [], empty, [], [])
    assert choices == ["a", "b", "c", "d", "e"]
    assert list(shown_runs(feed, [])) == ["b", "c", "d", "e"]  # the four that had a step last
    assert len(body) == 4 and set(cursor["points"]) == {"b", "c", "d", "e"}
    body, cursor, *_ = tick(feed, ["a", "gone"], cursor, [], [])
    assert len(body) == 1 and set(cursor["points"]) == {"a"}


def test_of_many_live_runs_the_page_keeps_showing_the_same(tmp_path: Path) -> None:
    feed = seen(tmp_path)
    for i, name in enumerate("abcdef"):
        run = feed.runs[name] = RunFeed(name, tmp_path / name)
        run.first_time, run.last_time, run.status = 100.0 + i, 200.0 + i, "running"
    feed.runs["f"].status = "finished"
    assert list(shown_runs(feed, [])) == ["b", "c", "d", "e"]  # live ones first
    feed.runs["a"].last_time = 900.0
    assert list(shown_runs(feed, [])) == ["b", "c", "d", "e"]


def test_a_run_that_is_over_holds_no_reader(tmp_path: Path) -> None:
    write_run(tmp_path / "over")
    store = Store(tmp_path / "live")
    write(store, 1, 3)
    feed = seen(tmp_path)
    assert feed.runs["over"]._run is None and feed.runs["live"]._run is not None
    store.close()
    look_again(feed)
    assert feed.runs["live"]._run is None


def test_a_broken_store_does_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.duckdb").write_text("this is no database\n" * 500)
    feed = seen(tmp_path)
    assert state_words(feed.runs["bad"])[0].startswith("cannot be read: ")
    assert state_words(feed.runs["good"])[1] == "ok"
    page = said(load_page("overview").body(feed))
    assert "cannot be read" in page and "Nothing to show yet" in page


def test_a_step_logged_again_breaks_the_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=4, events=False)
    store = Store(tmp_path / "run")
    write(store, 3, 5)
    store.close()
    run = seen(tmp_path).runs["run"]
    reward = [(p.x, p.y) for p in run.points if p.trace == "reward"]
    expected: list[tuple[int, float | None]] = [(s, s / 100) for s in (1, 2, 3, 4)]
    assert reward == [*expected, (3, None), *((s, s / 100) for s in (3, 4, 5))]


def test_many_browsers_read_each_row_once(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=30)
    feed = Feed(tmp_path)
    threads = [threading.Thread(target=feed.refresh) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    look_again(feed)
    assert [p.x for p in feed.runs["run"].points if p.trace == "reward"] == list(range(1, 31))


@pytest.mark.parametrize("name", PAGES)
def test_every_page_stands_on_nothing_and_on_little(name: str, tmp_path: Path) -> None:
    page = load_page(name)
    schema = Path(collapsewatch.__file__).with_name("schema.sql").read_text()
    assert set(page.needs) <= set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema))
    assert said(page.body(seen(tmp_path)))
    store = Store(tmp_path / "bare")
    store.log_step(StepRecord(step=1, time=1.0))
    store.close()
    assert "bare" in said(page.body(seen(tmp_path)))


def test_only_its_own_pages_may_ask(tmp_path: Path) -> None:
    client = create_app(tmp_path).server.test_client()
    home = client.get("/", headers={"Host": "127.0.0.1:8050"})
    assert home.status_code == 200
    assert home.headers["X-Frame-Options"] == "DENY" and home.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe-eval" not in home.headers["Content-Security-Policy"]
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[::1", ""):
        assert client.get("/", headers={"Host": host}).status_code in (400, 403), host
    question = {
        "output": "page.children",
        "outputs": {"id": "page", "property": "children"},
        "inputs": [{"id": "url", "property": "pathname", "value": "/"}],
        "changedPropIds": ["url.pathname"],
    }

    def ask(**headers: str) -> int:
        sent = {"Host": "localhost:8050"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post("/_dash-update-component", json=question, headers=sent).status_code

    assert ask() == ask(Origin="http://localhost:8050", Sec_Fetch_Site="same-origin") == 200
    assert ask(Origin="http://evil.example") == ask(Origin="null") == ask(Sec_Fetch_Site="cross-site") == 403


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DashboardError, match=rf"^--port: got {port}, .*--port 0") as caught:
            serve_in_thread(tmp_path, port=port)
    assert "\n" not in str(caught.value)
    with pytest.raises(DashboardError, match="--port: got 99999"):
        serve_in_thread(tmp_path, port=99999)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_it_is_served_on_this_machine_only(host: str, tmp_path: Path) -> None:
    with pytest.raises(DashboardError, match=rf"^--host: got '{re.escape(host)}', expected one of 127.0.0.1"):
        serve(tmp_path, host=host, port=0)


def test_serve_ends_on_ctrl_c_and_frees_the_port(tmp_path: Path) -> None:
    told: list[str] = []

    def announce(url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            told.append(answer.read().decode())
        told.append(url)
        raise KeyboardInterrupt

    serve(tmp_path, port=0, announce=announce)
    page, url = told
    assert "<title>collapsewatch</title>" in page
    port = int(url.rstrip("/").rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_it_follows_a_store_of_its_own_process(tmp_path: Path) -> None:
    """The demo trains and serves in one process: the reader must neither miss rows nor disturb the writer."""
    feed = Feed(tmp_path)
    store = Store(tmp_path / "run", flush_s=0.02, merge_s=0.05)
    for step in range(1, 41):
        write(store, step, step)
        time.sleep(0.01)
        look_again(feed)
    store.close()
    look_again(feed)
    assert not store.faults and not store.dropped
    assert [p.x for p in feed.runs["run"].points if p.trace == "reward"] == list(range(1, 41))
