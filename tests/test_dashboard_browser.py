"""The dashboard in a real Chromium: what a reader sees, what the browser complains of, what it asks for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.dashboards import serve_in_thread
from collapsewatch.records import Alarm, Applied, Driver, Event, Evidence, Observation, StepRecord, Tier
from collapsewatch.store import Store

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).parents[1] / "test-output"
EVIL = "<img src=x onerror=window.__xss=1><script>window.__xss=1</script>"
START = time.time() - 200.0
BROKEN_FROM, ALARM_AT, HEALED_AT, LAST = 41, 46, 56, 80


class Visit:
    """One page of the browser, and everything it did that it should not have."""

    def __init__(self, chromium: Any, url: str, width: int = 1440, scheme: str = "light") -> None:
        self.page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url, url))
        self.page.goto(url)

    def _request(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:", "blob:")):
            self.wrong.append(f"request to {asked}")

    def ask(self, expression: str) -> Any:
        """An expression's value in the page, where `trace(name)` is a trace of the first panel (reward)."""
        find = "name => document.querySelector('.js-plotly-plot').data.find(t => t.name === name)"
        return self.page.evaluate(f"() => {{ const trace = {find}; return {expression}; }}")

    def until(self, expression: str, value: Any) -> None:
        """Waits for an expression's value (Playwright's own waiting needs `eval`, which the page forbids)."""
        for _ in range(300):
            if self.ask(expression) == value:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{expression}: got {self.ask(expression)}, expected {value}")

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def leave(self) -> None:
        executed = self.page.evaluate("window.__xss")
        self.page.close()
        assert executed is None
        assert self.wrong == []


def log(store: Store, step: int, heals: bool = False, at: float | None = None) -> None:
    sick = min(1.0, (step - BROKEN_FROM) / 8) if step > BROKEN_FROM and not (heals and step > HEALED_AT) else 0.0
    wobble = 0.02 * ((step * 7) % 5 - 2)
    shares = {"tool_call": 0.6 * (1 - sick), "response": 0.4 * (1 - sick)}
    shares |= {"polluted": 0.3 * sick, "collapsed": 0.7 * sick}
    reward = (0.2 + 0.7 * step / (step + 12)) * (1 - 0.85 * sick) + wobble
    spike, fall = 10 ** (-4 + 4.4 * sick + wobble), 10 ** (-4.6 + 3 * sick - wobble)
    hazards = {
        "<tool_call>": spike,
        "</tool_call>": fall,
        "<|im_end|>": 10 ** (-3 + wobble),
        "<|im_start|>": 0.0,
    }
    streams = {f"hazard:{token}": value for token, value in hazards.items()}
    store.log_step(
        StepRecord(
            step=step,
            time=START + 2 * step if at is None else at,
            metrics={"reward": reward, "parse_rate": 1 - 0.95 * sick}
            | {f"structure/{k}": v for k, v in shares.items()},
            observations=tuple(Observation(s, v, 8) for s, v in {"hazard": sum(hazards.values()), **streams}.items()),
        )
    )
    level = max(-2.0, 1.2 * (step - BROKEN_FROM)) if sick else -1.0 + wobble
    store.log_evidence(Evidence(step, "e_detector", level, 5.3))


def raise_alarm(store: Store, step: int, token: str = "<tool_call>", tier: Tier = Tier.ALARM) -> None:
    drivers = (Driver(f"hazard:{token}@text", 0.7, 0.4, 0.001, 0.05),)
    store.log_alarm(Alarm(step, tier, "e_detector", drivers, BROKEN_FROM, 6.1, 5.3, "control_token_spike"))


def write_pair(logdir: Path) -> None:
    for name in ("rl-alone", "supervised"):
        heals = name == "supervised"
        store = Store(logdir / name)
        store.log_event(Event(0, START, "started", '{"max_steps": 80}'))
        for step in range(1, LAST + 1):
            log(store, step, heals)
        raise_alarm(store, ALARM_AT)
        if heals:
            for step in range(ALARM_AT + 1, HEALED_AT + 1):
                store.log_applied(Applied(step, "replay", "triggered", ALARM_AT, "applied"))
            raise_alarm(store, HEALED_AT + 8, tier=Tier.CLEARED)
        store.log_event(Event(LAST, START + 2 * LAST, "finished"))
        store.close()


def test_two_finished_runs_side_by_side(chromium: Any, tmp_path: Path) -> None:
    write_pair(tmp_path)
    served = serve_in_thread(tmp_path, port=0)
    try:
        visit = Visit(chromium, served.url)
        page = visit.page
        page.wait_for_selector(".cw-run:nth-of-type(2) .js-plotly-plot:last-of-type .main-svg")
        assert "ALARM since step 41: <tool_call> in text" in page.inner_text(".cw-run:nth-of-type(1)")
        assert "replay applied at step 56, 10 times in all" in page.inner_text(".cw-run:nth-of-type(2)")
        assert visit.ask("trace('rl-alone').x.length") == LAST
        for width, scheme in ((1440, "light"), (1440, "dark"), (420, "dark"), (420, "light")):
            page.set_viewport_size({"width": width, "height": 900})
            if visit.ask("document.documentElement.dataset.mantineColorScheme") != scheme:
                page.click("#scheme")
            visit.until("document.documentElement.dataset.mantineColorScheme", scheme)
            visit.until("document.documentElement.scrollWidth", width)  # nothing sticks out
            left, right = (page.locator(".cw-run").nth(i).bounding_box() for i in (0, 1))
            # Columns on a wide screen, one below the other on a narrow one.
            assert (left["y"] == right["y"]) is (width > 1000)
            visit.shot(f"overview-{scheme}-{width}")
        visit.leave()
    finally:
        served.close()


def test_a_run_appears_and_grows_without_a_reload(chromium: Any, tmp_path: Path) -> None:
    served = serve_in_thread(tmp_path / "logs", port=0)
    store = None
    try:
        visit = Visit(chromium, served.url)
        page = visit.page
        page.wait_for_selector(".cw-nothing")
        assert "No runs yet" in page.inner_text("main")
        visit.shot("overview-empty")
        page.evaluate("window.__here = true")
        store = Store(tmp_path / "logs" / "live", flush_s=0.05, merge_s=0.1)
        for step in range(1, 6):
            log(store, step, at=time.time())
        page.wait_for_selector(".js-plotly-plot .main-svg")
        visit.until("trace('live').x.length", 5)
        # A zoom must outlive what is added, and what is added must include the marks.
        page.evaluate("Plotly.relayout(document.querySelector('.js-plotly-plot'), {'xaxis.range': [2, 4]})")
        for step in range(6, 10):
            log(store, step, at=time.time())
        raise_alarm(store, 9)
        visit.until("trace('live').x.length", 9)
        visit.until("trace('alarm').x.length", 1)
        assert page.evaluate("document.querySelector('.js-plotly-plot').layout.xaxis.range") == [2, 4]
        page.wait_for_selector(".cw-state-alarm")
        assert page.inner_text(".cw-age") == "live"
        assert page.evaluate("window.__here") is True  # no reload happened
        visit.shot("overview-live")
        visit.leave()
    finally:
        if store is not None:
            store.close()
        served.close()


def test_foreign_text_is_only_text(chromium: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    for step in range(1, 4):
        log(store, step)
    store.log_step(StepRecord(4, START, {}, (Observation(f"hazard:{EVIL}", 0.3, 8),)))
    raise_alarm(store, 3, token=EVIL)
    store.log_applied(Applied(3, EVIL, "triggered", 3, "applied"))
    store.log_event(Event(3, START, "fault", f"<a href=javascript:window.__xss=1>{EVIL}</a>"))
    store.close()
    served = serve_in_thread(tmp_path, port=0)
    try:
        visit = Visit(chromium, served.url)
        page = visit.page
        page.wait_for_selector(".cw-panel .js-plotly-plot .main-svg")
        assert EVIL in page.inner_text(".cw-state-alarm")
        for graph in page.locator(".js-plotly-plot .nsewdrag").all():
            graph.hover()
            page.wait_for_timeout(150)
        assert page.locator("img[src=x]").count() == 0 and page.locator("a[href^=javascript]").count() == 0
        visit.shot("overview-foreign-text")
        visit.leave()
    finally:
        served.close()


def test_keyboard_and_colour_scheme(chromium: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    log(store, 1)
    store.close()
    served = serve_in_thread(tmp_path, port=0)
    try:
        visit = Visit(chromium, served.url)
        page = visit.page
        page.wait_for_selector(".js-plotly-plot .main-svg")
        reached: list[str] = []
        while len(reached) < 100 and "cw-log" not in reached:
            page.keyboard.press("Tab")
            reached.append(visit.ask("document.activeElement.className || document.activeElement.id"))
            if visit.ask("document.activeElement.id") == "scheme":
                reached.append("scheme")
                page.keyboard.press("Enter")
        assert {"cw-link", "scheme", "cw-log"} <= set(reached)
        assert page.evaluate("document.documentElement.dataset.mantineColorScheme") == "dark"
        tools = visit.ask("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
        assert "Download plot as a PNG" in tools and not [tool for tool in tools if "hare" in tool]
        visit.leave()
    finally:
        served.close()
