"""The dashboard without a browser: what it reads, draws, says and sends."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from dash import no_update
from hypothesis import given
from hypothesis import strategies as st
from plotly.io.json import to_json_plotly

import collapsewatch
from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.lines import HAZARD_FLOOR, LINES, MARKS, OVERVIEW
from collapsewatch.dashboards.pages import PAGES, load_page
from collapsewatch.dashboards.pages.overview import facts, log_lines
from collapsewatch.dashboards.panels import EVIDENCE, HAZARD, REWARD, STRUCTURE
from collapsewatch.dashboards.parts import age_words, state_words
from collapsewatch.dashboards.places import Place, place_of
from collapsewatch.dashboards.run_feed import RunFeed
from collapsewatch.dashboards.tick import Live, news
from collapsewatch.dashboards.views import View, read_ahead, shown_runs
from collapsewatch.records import Applied, Driver, StepRecord, Tier
from collapsewatch.store import Store
from collapsewatch.theme import line_styles
from collapsewatch.words import cause, escape, plain
from tests.dashboard_runs import ALARM, EVIL, HEALED, ONSET, alarm, log, look, record, until_step, write_run


def seen(logdir: Path) -> Feed:
    return look(Feed(logdir))


def view_of(feed: Feed, place: Place | None = None, most: int = 4) -> View:
    return View(feed, place or Place(), tuple(LINES), most)


def said(*components: object) -> str:
    return json.dumps(json.loads(to_json_plotly(list(components))), ensure_ascii=False)


def ids(component: Any, kind: str) -> list[dict[str, str]]:
    """The ids of a page's graphs or live words, as a browser would send them."""
    found = [json.loads(i) for i in re.findall(r'"id": (\{[^{}]*\})', said(component))]
    return [i for i in found if i["type"] == kind]


def test_a_run_in_words(tmp_path: Path) -> None:
    write_run(tmp_path / "healthy")
    write_run(tmp_path / "broken", broken=True)
    feed = seen(tmp_path)
    assert state_words(feed.runs["healthy"]) == ("OK at step 30", "ok")
    assert state_words(feed.runs["broken"]) == (f"ALARM since step {ONSET}: <tool_call> in text", "alarm")
    headline = said(facts(view_of(feed), "healthy"))
    for words in ("30 / 40", "best 0.53 at step 30", "100%", "0%"):
        assert words in headline
    assert "alarm (e_detector): <tool_call> in text" in said(log_lines(view_of(feed), "broken"))


def test_alarm_cleared_and_intervention_streak(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    log(store, 1, 20)
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
    told = run.chronicle
    assert told.action is not None and told.action.words == "intervention replay applied at step 15, 4 times in all"
    assert "intervention replay effect: calls that do not parse 0.9 to 0.1" in [entry.words for entry in told.log]
    # A streak of applications is marked once, where it starts, and has one band.
    marked = {name: [dot.x for dot in run.lines[name] if dot.y is not None] for name in MARKS}
    assert marked == {"alarm": [8], "cleared": [18], "intervention": [9, 15], "band": [9, 10, 10, 11, 11, 12, 15, 16]}


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
    run.chronicle.last_time = 1000.0
    assert age_words(run, 1003.0) == ("live", False)
    assert age_words(run, 1034.0) == ("training has stopped sending: nothing for 34 s", True)
    run.chronicle.step_seconds = 20.0  # a step of 20 s is late after 100 s, not after 34
    assert age_words(run, 1034.0) == ("last step 34 s ago", False)
    run.status = "finished"
    assert age_words(run, 4600.0) == ("last step 1 h ago", False)


@pytest.mark.parametrize("align", ["", "onset"])
def test_what_ticks_add_is_what_a_reload_would_show(align: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "run", flush_s=0.02, merge_s=0.04)
    feed = Feed(tmp_path)
    log(store, 1, ALARM + 1, broken=True, heals=True)
    until_step(feed, "run", ALARM + 1)
    early = view_of(feed, Place(more={"align": align}))
    panels = {panel.name: panel for name in PAGES for panel in load_page(name).panels if hasattr(panel, "extend")}
    key_of = {name: "all" if name.startswith("compare-") else "run" for name in panels}
    drawn = {name: panel.draw(key_of[name], early) for name, panel in panels.items()}
    version = early.versions["run"]
    for last in (ALARM + 3, HEALED, HEALED + 4):
        log(store, early_end(feed) + 1, last, broken=True, heals=True)
        until_step(feed, "run", last)
        now = view_of(feed, early.place)
        version, fresh = feed.runs["run"].fresh(version)
        assert fresh is not None
        for name, panel in panels.items():
            added = panel.extend(key_of[name], now, {"run": fresh})
            for place, index in enumerate(added[1] if added else []):
                for array, values in added[0].items():
                    drawn[name]["data"][index][array].extend(values[place])
    store.close()
    late = view_of(feed, early.place)
    for name, panel in panels.items():
        whole = panel.draw(key_of[name], late)
        assert (drawn[name] is None) == (whole is None)
        if whole is not None:
            assert drawn[name]["data"] == whole["data"], name


def early_end(feed: Feed) -> int:
    return feed.runs["run"].last_step or 0


def test_figures_show_what_was_logged(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=16, broken=True)
    view = view_of(seen(tmp_path))
    traces = {p.name: {t["name"]: t for t in p.draw("a", view)["data"]} for p in (REWARD, STRUCTURE, HAZARD, EVIDENCE)}
    rows = [record(step, broken=True) for step in range(1, 17)]
    assert traces["reward"]["a"]["y"] == [row.metrics["reward"] for row in rows]
    for state in ("tool_call", "response", "polluted", "collapsed"):
        assert traces["structure"][state]["y"] == [row.metrics[f"structure/{state}"] for row in rows]
    logged = [o.value for row in rows for o in row.observations if o.stream == "hazard:<|im_end|>"]
    assert traces["hazard"]["&lt;|im_end|&gt;"]["y"] == [max(value, HAZARD_FLOOR) for value in logged]
    assert traces["evidence"]["e_detector"]["y"][-1] == pytest.approx(-2.0 + 1.5 * (16 - ONSET))
    assert all(traces[name]["alarm"]["x"] == [ALARM] for name in traces)


def test_a_hazard_of_zero_is_drawn_at_the_floor_and_told_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    rows = record(1)
    store.log_step(
        dataclasses.replace(rows, observations=tuple(dataclasses.replace(o, value=0.0) for o in rows.observations))
    )
    store.close()
    trace = HAZARD.draw("a", view_of(seen(tmp_path)))["data"][1]
    assert (trace["y"], trace["text"]) == ([HAZARD_FLOOR], ["0"])


def test_a_range_of_steps_is_drawn_from_the_store(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    figure = REWARD.draw("a", view_of(seen(tmp_path), Place(first=5, last=9)))
    assert figure["data"][0]["x"] == [5, 6, 7, 8, 9]
    assert figure["layout"]["xaxis"]["range"] == [5, 9]


def test_no_markup_reaches_a_figure(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    log(store, 1, 3)
    store.log_alarm(alarm(2, stream=f"hazard:{EVIL}@text"))
    store.log_applied(Applied(3, EVIL, "triggered", 2, "applied"))
    store.close()
    view = view_of(seen(tmp_path))
    for panel in (panel for name in PAGES for panel in load_page(name).panels):
        figure = panel.draw("all" if panel.name.startswith("compare") else "run", view)
        if figure is not None:
            assert "<img" not in said(figure) and "<script" not in said(figure)


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


steps = st.none() | st.integers(0, 10**9)


@given(st.sampled_from([*PAGES, "x"]), st.lists(st.text(min_size=1), unique=True, max_size=4), steps, steps, st.text())
def test_an_address_leads_back_to_its_place(page: str, runs: list[str], first: Any, last: Any, token: str) -> None:
    place = Place(page, tuple(runs), first, last).at(token=token)
    path, _, search = place.href.partition("?")
    try:
        place.href.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is no address
    assert place_of(path, f"?{search}") == place


def live(feed: Feed, name: str, view: View, body: Any) -> Live:
    pages = {name: load_page(name)}
    return Live(feed, pages, view.place, view.cursor(), ids(body, "graph"), ids(body, "part"))


def test_a_tick_sends_only_what_is_new(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", flush_s=0.02, merge_s=0.05)
    log(store, 1, 5)
    feed = Feed(tmp_path)
    until_step(feed, "run", 5)
    page = load_page("overview")
    view = View(feed, Place(), page.needs, page.most)
    body = page.body(view)
    before = live(feed, "overview", view, body)
    words = news(before)[8]
    log(store, 6, 7)
    until_step(feed, "run", 7)
    changed = news(before)
    assert changed[0] is no_update and len(changed[6]) == len(page.panels)
    assert changed[6][0][0]["x"] == [[6, 7]]
    assert len(words) == len(page.parts) and "OK at step 7" in said(changed[8])
    again = news(Live(feed, {"overview": page}, Place(), changed[1], before.graphs, before.parts))
    assert again[6] == [no_update] * len(page.panels)  # nothing new: every graph is left as it is
    assert [w for w in again[8] if w is not no_update] == []
    store.close()
    feed.close()


def test_a_tick_that_finds_another_page_than_its_address_builds_that(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    feed = seen(tmp_path)
    pages = {name: load_page(name) for name in PAGES}
    view = View(feed, Place("overview"), pages["overview"].needs, 4)
    body = pages["overview"].body(view)
    shown = Live(feed, pages, Place("compare"), view.cursor(), ids(body, "graph"), ids(body, "part"))
    built = news(shown)
    assert {i["panel"] for i in ids(built[0], "graph")} <= {panel.name for panel in pages["compare"].panels}
    assert built[1]["href"] == "/compare"
    feed.close()


def test_a_zoom_redraws_the_same_graphs_over_its_steps(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    feed = seen(tmp_path)
    page = load_page("overview")
    view = View(feed, Place("overview"), page.needs, page.most)
    shown = live(feed, "overview", view, page.body(view))
    changed = shown.zoomed({"xaxis.range[0]": 4.6, "xaxis.range[1]": 9.2})
    assert changed[3] == "?from=5&to=9" and changed[4:6] == (5, 9)
    assert changed[7][0]["data"][0]["x"] == [5, 6, 7, 8, 9]
    assert changed[1]["at"] == view.at
    for layout in ({"autosize": True}, {"yaxis.range[0]": 1, "yaxis.range[1]": 2}, None):
        assert shown.zoomed(layout)[3] is no_update


def test_runs_appear_and_can_be_picked(tmp_path: Path) -> None:
    logdir = tmp_path / "not there yet"
    feed = seen(logdir)
    page = load_page("overview")
    view = View(feed, Place(), page.needs, page.most)
    assert "No runs yet" in said(page.body(view))
    before = live(feed, "overview", view, page.body(view))
    for name in ("a", "b", "c", "d", "e"):
        write_run(logdir / name, steps=int(name, 16) - 8)
    look(feed)
    body, cursor, choices, *_ = news(before)
    assert choices == ["a", "b", "c", "d", "e"]
    assert set(cursor["versions"]) == {"b", "c", "d", "e"}  # the four that had a step last
    assert len(ids(body, "graph")) == 4 * len(page.panels)
    assert list(view_of(feed, Place(runs=("a", "gone"))).runs) == ["a"]
    feed.close()


def test_of_many_live_runs_the_page_keeps_showing_the_same(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    for i, name in enumerate("abcdef"):
        run = feed.runs[name] = RunFeed(name, tmp_path / name)
        run.chronicle.first_time, run.chronicle.last_time = 100.0 + i, 200.0 + i
    feed.runs["f"].status = "finished"
    assert list(shown_runs(feed, (), 4)) == ["b", "c", "d", "e"]  # live ones first
    feed.runs["a"].chronicle.last_time = 900.0
    assert list(shown_runs(feed, (), 4)) == ["b", "c", "d", "e"]


def test_a_run_that_is_over_and_not_shown_holds_no_reader(tmp_path: Path) -> None:
    write_run(tmp_path / "over")
    store = Store(tmp_path / "live")
    log(store, 1, 3)
    feed = Feed(tmp_path)
    feed.refresh()
    assert feed.runs["over"]._run is None and feed.runs["live"]._run is not None
    store.close()
    feed._looked = feed._searched = float("-inf")
    feed.refresh()
    assert feed.runs["live"]._run is None


def test_a_broken_store_does_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.duckdb").write_text("this is no database\n" * 500)
    feed = seen(tmp_path)
    assert state_words(feed.runs["bad"])[0].startswith("cannot be read: ")
    assert state_words(feed.runs["good"])[1] == "ok"
    for name in PAGES:
        page = load_page(name)
        shown = said(page.body(View(feed, Place(name, ("bad",)), page.needs, page.most)))
        assert "Traceback" not in shown
    assert "Nothing to show: needs the metric reward" in said(load_page("overview").body(view_of(feed)))


def test_a_step_logged_again_breaks_the_line(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    for first, last in ((1, 4), (3, 5)):
        store = Store(tmp_path / "run")
        log(store, first, last)
        store.close()
        look(feed)
    reward = [(dot.x, dot.y) for dot in feed.runs["run"].lines["reward"]]
    logged = {step: record(step).metrics["reward"] for step in range(1, 6)}
    expected = [(step, logged[step]) for step in (1, 2, 3, 4)]
    assert reward == [*expected, (3, None), *((step, logged[step]) for step in (3, 4, 5))]


def test_many_browsers_read_each_row_once(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    feed = Feed(tmp_path)
    feed.refresh()
    threads = [threading.Thread(target=feed.want, args=(["run"], ["metrics"], 5.0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [dot.x for dot in feed.runs["run"].lines["reward"]] == list(range(1, 31))
    feed.close()


@pytest.mark.parametrize("name", PAGES)
def test_every_page_stands_on_nothing_and_on_little(name: str, tmp_path: Path) -> None:
    page = load_page(name)
    schema = Path(collapsewatch.__file__).with_name("schema.sql").read_text()
    assert set(page.needs) <= set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema))
    assert page.question.endswith("?")

    def body() -> str:
        return said(page.body(View(seen(tmp_path), Place(name), page.needs, page.most)))

    assert "No runs yet" in body()
    store = Store(tmp_path / "bare")
    store.log_step(StepRecord(step=1, time=1.0))
    store.close()
    assert "bare" in body()
    write_run(tmp_path / "bare", broken=True, heals=True)
    full = body()
    assert "bare" in full
    # Whatever can be live is listed with the page, and what is listed is shown.
    view = View(seen(tmp_path), Place(name), page.needs, page.most)
    shown = page.body(view)
    assert {i["panel"] for i in ids(shown, "graph")} <= {panel.name for panel in page.panels}
    assert {i["part"] for i in ids(shown, "part")} == set(page.parts)


def test_the_alarms_page_tells_who_did_it_and_what_helped(tmp_path: Path) -> None:
    write_run(tmp_path / "run", broken=True, heals=True)
    page = load_page("alarms")
    text = said(page.body(View(seen(tmp_path), Place("alarms"), page.needs, page.most)))
    for words in (
        f"Alarm at step {ALARM}",
        f"cleared at step {HEALED + 2}",
        "Applied: replay, 8 times",
        "symbols only",
    ):
        assert words in text or words == "symbols only"
    assert f"/rollouts?run=run&rank=0&rollout=1&step={ALARM}" in text


def test_it_follows_a_store_of_its_own_process(tmp_path: Path) -> None:
    """The demo trains and serves in one process: the reader must neither miss rows nor disturb the writer."""
    feed = Feed(tmp_path)
    store = Store(tmp_path / "run", flush_s=0.02, merge_s=0.05)
    for step in range(1, 41):
        log(store, step, step)
        time.sleep(0.01)
        if step % 5 == 0:
            look(feed)
    store.close()
    look(feed)
    assert not store.faults and not store.dropped
    assert [dot.x for dot in feed.runs["run"].lines["reward"]] == list(range(1, 41))


def test_a_page_is_there_before_a_long_run_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    feed = Feed(tmp_path)
    feed.refresh()  # the folder and what happened, no lines yet
    page = load_page("control")
    view = View(feed, Place(), page.needs, page.most)
    assert "Reading the run" in said(page.body(view))
    before = live(feed, "control", view, page.body(view))
    look(feed)
    assert len(ids(news(before)[0], "graph")) == len(page.panels)  # what is there now is drawn
    feed.close()


def test_what_the_first_page_shows_is_read_before_anybody_asks(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    feed = read_ahead(tmp_path)
    deadline = time.monotonic() + 60
    while "run" not in feed.runs or not feed.runs["run"].followed >= set(OVERVIEW):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    feed.close()
    feed.want(["run"], ["control"])  # too late: a browser that asks while the server ends
    feed.refresh()
    assert feed.runs["run"]._run is None and "control" not in feed.runs["run"].followed
