"""The dashboard in a real Chromium: what a reader sees, what the browser complains of, what it asks for."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.pages import PAGES
from collapsewatch.dashboards.server import serve_in_thread
from collapsewatch.records import Event
from collapsewatch.store import Store
from tests.dashboard_runs import ALARM, EVIL, log, write_run

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).parents[1] / "test-output"
FIRST_ROW = "document.querySelector('.ag-row[row-index=\"0\"] [col-id=step]')?.innerText"
COLLAPSED, HEALED, BROKEN, LIVE = "collapsed", "healed", "broken", "live"


class Visit:
    """One page of the browser, and everything it did that it should not have."""

    def __init__(self, chromium: Any, url: str, path: str = "", width: int = 1440, scheme: str = "light") -> None:
        self.page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url, url))
        self.page.goto(url.rstrip("/") + "/" + path.lstrip("/"))
        self.page.wait_for_selector("#cw-still", state="detached")

    def _request(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:", "blob:")):
            self.wrong.append(f"request to {asked}")

    def ask(self, expression: str) -> Any:
        """An expression's value in the page, where `plot(panel)` is a figure by the title of its panel."""
        find = "title => [...document.querySelectorAll('.cw-panel')].find(p => p.ariaLabel?.startsWith(title))"
        return self.page.evaluate(
            f"() => {{ const plot = t => ({find})(t)?.querySelector('.js-plotly-plot'); return {expression}; }}"
        )

    def until(self, expression: str, value: Any, seconds: float = 15.0) -> float:
        """Seconds until an expression has a value (Playwright's own waiting needs `eval`, which the page forbids)."""
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            if self.ask(expression) == value:
                return time.monotonic() - begin
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{expression}: got {self.ask(expression)}, expected {value}")

    def open(self, name: str) -> None:
        """Goes to a page by its link."""
        self.page.click(f"nav a[href^='/{name}']")
        self.page.wait_for_selector(f"nav .cw-here[href^='/{name}']")

    def serious(self, axe: str) -> list[tuple[str, str]]:
        """What axe-core finds that keeps somebody from using the page: rule, and the first element."""
        if not axe:
            return []
        if self.ask("window.axe === undefined"):
            self.page.evaluate(axe)
        found = self.page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
        return [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def leave(self) -> None:
        executed = self.page.evaluate("window.__xss")
        images, links = (self.page.locator(css).count() for css in ("img[src=x]", "a[href^=javascript]"))
        self.page.close()
        assert (executed, images, links) == (None, 0, 0)
        assert self.wrong == []


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy run, a collapsed one, one that healed, one whose database is broken."""
    logdir = tmp_path_factory.mktemp("stores")
    write_run(logdir / "healthy")
    write_run(logdir / COLLAPSED, broken=True)
    write_run(logdir / HEALED, broken=True, heals=True)
    (logdir / BROKEN).mkdir()
    (logdir / BROKEN / "run.duckdb").write_bytes((logdir / "healthy" / "run.duckdb").read_bytes()[:20_000])
    return logdir


@pytest.fixture(scope="module")
def url(stores: Path) -> Iterator[str]:
    served = serve_in_thread(Feed(stores), port=0)
    yield served.url
    served.close()


@pytest.mark.parametrize("run", ["healthy", BROKEN])
def test_every_page_on_every_kind_of_store(run: str, chromium: Any, url: str) -> None:
    visit = Visit(chromium, url, f"overview?run={run}")
    page = visit.page
    for name in PAGES:
        visit.open(name)
        said = page.inner_text("main")
        assert run in said
        assert ("cannot be read" in said) is (run == BROKEN and name != "rollouts")
        if run != BROKEN and name != "rollouts":
            page.wait_for_selector(".js-plotly-plot .main-svg")
    visit.shot(f"compare-{run}")
    visit.leave()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, fetched by npm, because its licence is not ours; empty where that cannot be."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is not None:
        subprocess.run([npm, "pack", "--prefer-offline", "axe-core@4"], cwd=folder, capture_output=True, timeout=60)
    packed = next(folder.glob("axe-core-*.tgz"), None)
    if packed is None:
        return ""
    with tarfile.open(packed) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


def test_axe_is_there_to_check_with(axe: str) -> None:
    """Says so where pages are looked at without it."""
    if not axe:
        pytest.skip("npm could not fetch axe-core: accessibility is not checked")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (420, "dark")])
def test_pages_fit_their_screen_and_anybody(width: int, scheme: str, chromium: Any, url: str, axe: str) -> None:
    visit = Visit(chromium, url, f"overview?run={COLLAPSED}&run={HEALED}", width, scheme)
    page = visit.page
    for name in PAGES:
        visit.open(name)
        page.wait_for_selector(".ag-row .ag-cell, .js-plotly-plot .main-svg")
        page.wait_for_timeout(200)  # figures take the width they are given
        visit.until("document.documentElement.scrollWidth", width)  # nothing sticks out
        visit.shot(f"{name}-{scheme}-{width}")
        assert page.locator("html").get_attribute("data-mantine-color-scheme") == scheme
        assert visit.serious(axe) == [], name
    visit.leave()


def test_from_an_alarm_to_its_rollout_and_a_token(chromium: Any, url: str, axe: str) -> None:
    visit = Visit(chromium, url, f"overview?run={COLLAPSED}")
    page = visit.page
    page.click("text=Why?")
    page.wait_for_selector(".cw-episode")
    assert f"Alarm at step {ALARM}" in page.inner_text(".cw-episode")
    page.locator(".cw-episode a[href*='rollout=']").first.click()
    page.wait_for_selector("#rollout h2")
    assert f"run={COLLAPSED}" in page.url and "rollout=" in page.url
    # A rollout of a kept step, chosen from the chips of its prompt, token by token.
    page.goto(f"{url}rollouts?run={COLLAPSED}&step=8&rank=0&rollout=0")
    page.locator(".cw-again a[href*='rollout=0&step=16']").click()
    page.wait_for_selector("#rollout h2:has-text('Step 16')")
    page.wait_for_selector(".cw-token")
    assert page.locator(".cw-token").all_inner_texts()[0] == "<tool_call>"
    page.locator(".cw-token", has_text="<tool_call>").first.click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = page.inner_text("#token-facts")
    assert "2: " in said and "body" in said and "p(<tool_call>)" in said
    assert EVIL in page.inner_text(".cw-chosen")
    assert page.url.endswith("#t=2")
    page.locator("#token-mode").click()
    page.get_by_role("option", name="probability of <tool_call>").click()
    page.wait_for_timeout(100)
    assert page.locator(".cw-token").first.evaluate("e => e.style.backgroundColor").startswith("rgba(213, 94, 0")
    visit.shot("tokens")
    assert visit.serious(axe) == []
    deep = page.url
    visit.leave()
    again = Visit(chromium, url, deep.removeprefix(url))
    again.page.wait_for_selector(".cw-chosen")
    assert again.page.inner_text("#token-facts") == said
    again.leave()


def test_the_table_filters_in_the_database_and_opens_a_rollout(chromium: Any, url: str) -> None:
    visit = Visit(chromium, url, f"rollouts?run={COLLAPSED}")
    page = visit.page
    visit.until(FIRST_ROW, "30")
    filtered = {"kept": {"filterType": "text", "type": "equals", "filter": "tokens"}}
    page.evaluate("model => dash_ag_grid.getApi('rollout-grid').setFilterModel(model)", filtered)
    visit.until(FIRST_ROW, "28")
    page.click(".ag-row[row-index='0'] [col-id=structure]")
    page.wait_for_selector("#rollout h2:has-text('Step 28, rollout 0')")
    page.wait_for_selector(".cw-token")
    assert "step=28" in page.url
    visit.until("document.querySelectorAll('.ag-row').length", 7)  # the table stands as it was, and filtered
    visit.leave()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_are_there_without_a_script(chromium: Any, url: str, scheme: str) -> None:
    page = chromium.new_page(java_script_enabled=False, color_scheme=scheme, viewport={"width": 1440, "height": 900})
    page.goto(f"{url}overview?run={COLLAPSED}")
    page.screenshot(path=SHOTS / f"overview-still-{scheme}.png", full_page=True)
    assert page.inner_text(".cw-state").startswith("ALARM since step")
    assert page.locator(".cw-panel .cw-picture path").count() >= 10
    box = page.locator(".cw-panel[aria-label^=Reward] .cw-picture").bounding_box()
    assert box["width"] > 400 and box["height"] == 150
    page.click("nav a[href^='/structure']")
    assert page.locator("nav .cw-here").inner_text() == "Structure" and COLLAPSED in page.url
    page.close()


def save(page: Any, panel: str, kind: str, folder: Path) -> Path:
    """What a panel saves as PNG, SVG or CSV."""
    page.locator(f".cw-panel[aria-label^={panel}] summary").click()
    with page.expect_download() as download:
        page.locator(f".cw-panel[aria-label^={panel}] .cw-export", has_text=kind).click()
    saved: Path = folder / download.value.suggested_filename
    download.value.save_as(saved)
    return saved


def test_a_zoom_and_a_save(chromium: Any, url: str, tmp_path: Path) -> None:
    visit = Visit(chromium, url, f"overview?run={COLLAPSED}")
    page = visit.page
    page.wait_for_selector(".cw-panel[aria-label^=Evidence] .main-svg")
    visit.until("plot('Reward').data[0].x.length", 30)
    for _ in range(5):  # a page that was built before all was read is built once more, maybe under the mouse
        box = page.locator(".cw-panel[aria-label^=Reward] .nsewdrag").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.4, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, middle, steps=4)
        page.mouse.up()
        page.wait_for_timeout(1000)
        if visit.ask("location.search.includes('from')"):
            break
    visit.until("location.search.includes('&from=1')", True)
    first, last = (int(part.partition("=")[2]) for part in page.url.partition("?")[2].split("&")[1:])
    visit.until("document.querySelector('nav a[href^=\"/control\"]').search === location.search", True)
    for panel in ("Reward", "Control-token hazard", "Structure", "Evidence"):  # all follow
        visit.until(f"plot('{panel}').layout.xaxis.range", [first, last])
    assert visit.ask("plot('Reward').data[0].x") == list(range(first, last + 1))
    for kind, begins in (("CSV", b"series,x,y,value\r\n"), ("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        saved = save(page, "Reward", kind, tmp_path)
        assert saved.read_bytes().startswith(begins) and saved.suffix == f".{kind.lower()}"
        if kind == "CSV":
            rows = saved.read_text().splitlines()
            trace = "plot('Reward').data[0]"
            assert rows[1] == f"{COLLAPSED},{first},{visit.ask(trace + '.y[0]')},{visit.ask(trace + '.text[0]')}"
    # Numbers stay numbers, below zero too; what a spreadsheet would run does not.
    visit.ask("plot('Evidence').data[0].name = '=1+1'")
    visit.ask("plot('Evidence').data[0].y[0] = -1.5")
    visit.ask("plot('Evidence').data[0].text[0] = '-1+cmd'")
    lines = save(page, "Evidence", "CSV", tmp_path).read_text().splitlines()
    assert lines[1] == f"'=1+1,{first},-1.5,'-1+cmd"
    visit.leave()


def test_a_run_appears_grows_and_stops_without_a_reload(chromium: Any, tmp_path: Path) -> None:
    served = serve_in_thread(Feed(tmp_path / "logs"), port=0)
    store = None
    try:
        visit = Visit(chromium, served.url)
        page = visit.page
        page.wait_for_selector(".cw-nothing")
        visit.shot("overview-empty")
        page.evaluate("window.__here = true")
        store = Store(tmp_path / "logs" / LIVE)
        store.log_event(Event(0, time.time(), "started", '{"max_steps": 40}'))
        log(store, 1, 10, broken=True, live=True)
        page.wait_for_selector(".js-plotly-plot .main-svg")
        visit.until("plot('Reward').data[0].x.length", 10)
        # A zoom by hand of the values must outlive what is added, and what is added must include the marks.
        page.evaluate("Plotly.relayout(document.querySelector('.js-plotly-plot'), {'yaxis.range': [0.2, 0.9]})")
        log(store, 11, ALARM - 1, broken=True, live=True)
        visit.until("plot('Reward').data[0].x.length", ALARM - 1)
        assert visit.ask("plot('Reward').layout.yaxis.range") == [0.2, 0.9]
        assert page.inner_text(".cw-age") == "live"
        log(store, ALARM, ALARM + 4, broken=True, live=True)
        page.wait_for_selector(".cw-state-alarm")
        visit.until("plot('Reward').data[0].x.length", ALARM + 4)
        visit.open("control")
        page.wait_for_selector(".cw-panel[aria-label^='Where they are forbidden'] .main-svg")
        log(store, ALARM + 5, ALARM + 6, broken=True, live=True)
        visit.until("plot('Where they are forbidden').data[0].z.length", ALARM + 6)
        visit.open("rollouts")
        page.wait_for_selector(".ag-row[row-index='0'] .ag-cell")
        log(store, ALARM + 7, ALARM + 8, broken=True, live=True)
        visit.until(FIRST_ROW, str(ALARM + 8))
        visit.open("compare")
        store.close()
        store = None
        visit.until("document.querySelector('.cw-table td:nth-child(2)')?.innerText", "stopped")
        assert page.evaluate("window.__here") is True  # no reload happened
        visit.leave()
    finally:
        if store is not None:
            store.close()
        served.close()


def test_the_keyboard_reaches_everything(chromium: Any, url: str) -> None:
    visit = Visit(chromium, url, f"overview?run={COLLAPSED}")
    page = visit.page
    page.wait_for_selector(".js-plotly-plot .main-svg")
    reached: list[str] = []
    while len(reached) < 120 and "cw-log" not in reached:
        page.keyboard.press("Tab")
        reached.append(visit.ask("document.activeElement.className || document.activeElement.id"))
        reached.append(visit.ask("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "scheme":
            page.keyboard.press("Enter")
    assert {"cw-skip", "cw-link", "cw-why", "scheme", "first", "SUMMARY", "cw-log"} <= set(reached)
    assert page.evaluate("document.documentElement.dataset.mantineColorScheme") == "dark"
    tools = visit.ask("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert "Zoom in" in tools and not [tool for tool in tools if "hare" in tool]
    visit.leave()
