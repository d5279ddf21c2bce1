"""The page of `analyze --html`: one file that asks for nothing, says what reports say, and obeys no foreign text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsewatch.curves import Curves
from collapsewatch.page import PageError, check_target, write_page
from collapsewatch.page.markup import marked, tag
from collapsewatch.records import Applied, Observation, RolloutRow, StepRecord, Structure, TurnRow
from collapsewatch.report import RunReport, analyze
from collapsewatch.store import Store

SHOTS = Path(__file__).parents[1] / "test-output"
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'
EVIL = [
    "<img src=x onerror=window.__xss=1>",
    "<script>window.__xss=1</script>",
    "</script><script>window.__xss=1</script>",
    "</pre></section></main><svg/onload=window.__xss=1>",
    "\"'><a href=javascript:window.__xss=1>x</a>",
    "<!--<script>window.__xss=1",
    "&lt;img src=x onerror=window.__xss=1&gt;",
    "</style><style>*{display:none}</style>",
    "]]><![CDATA[<b>",
    "\u2028\u202e\x1b[31m\x00",
    "%{x}<b onmouseover=window.__xss=1>${window.__xss=1}",
]


class Page(HTMLParser):
    """What a browser makes of the page: elements, attributes, text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.data, self.scripts = "", list[Any](), list[str]()
        self._inside = ("", dict[str, str | None]())
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        if self._inside[0] == "script":
            if self._inside[1].get("type") == "application/json":
                self.data.append(json.loads(data))
            else:
                self.scripts.append(data)
        elif self._inside[0] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def broken_run(folder: Path, name: str = "run", evil: str = "", steps: int = 70) -> Path:
    """A run that breaks at step 41, with rollouts to read, interventions, and foreign text wherever it may stand."""
    store = Store(folder / name)
    for t in range(1, steps + 1):
        late = t > 40
        p = 0.6 if t > 36 else 0.001 + 0.0005 * (t % 3)
        token = f"<tool_call>{evil}"
        hazards = {"hazard": p, f"hazard:{token}": 0.8 * p, f"hazard:{token}@text": 0.7 * p, "hazard:<|im_end|>": 1e-4}
        seen = [Observation(s, -math.log1p(-v), 8) for s, v in hazards.items()]
        seen += [Observation("polluted", 0.7 if late else 0.01, 8), Observation("collapsed", 0.1 * late, 8)]
        state = Structure.POLLUTED if late else Structure.TOOL_CALL
        rollout = RolloutRow(
            0, 0, 0.9 - 0.8 * late, 0.0, 1, 9, 1, 0, str(state), p, f"asked {t}{evil}", f"{CALL}{t}{evil}"
        )
        turns = [
            TurnRow(i, 0, str(state), evil or "unclosed_call" if late else "ok", "eos", 9, 1, 0.0) for i in range(4)
        ]
        metrics = {"reward": 0.9 - 0.8 * late, "entropy": 0.3, "grad_norm": 50.0 if t == 41 else 0.5}
        metrics |= {f"eval_reward{evil}": 0.5} if t % 10 == 0 else {}
        store.log_step(StepRecord(t, float(t), metrics, tuple(seen), (), tuple(turns), (rollout,)))
    store.log_applied(Applied(50, "erroneous", "triggered", 49, "applied", {}))
    store.close()
    return folder / name


def written(folder: Path, reports: list[RunReport]) -> str:
    write_page(reports, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_the_page_says_what_the_report_says(tmp_path: Path) -> None:
    (report,) = analyze(broken_run(tmp_path))
    page = Page(written(tmp_path, [report]))
    words = " ".join(page.text.split())
    assert "run collapsedCollapsed: control tokens became likely where the chat format forbids them." in words
    assert f"onsetstep {report.onset_step}alarmstep {report.detected_step}" in words
    assert "reward first / best / last0.90 / 0.90 / 0.10" in words
    assert "Between segments of RL" in words and "the paper, table 1, figure 4" in words
    assert report.onset_step is not None and f"asked {report.onset_step - 1}" in words
    assert "interventions1" in words and str(tmp_path / "run") in words
    assert len(page.all("mark")) >= 8 and {"class": "main"} in page.all("mark")
    # A run of its own has no table of comparison.
    assert not page.all("h1")


def test_charts_show_every_curve_with_the_onset_and_the_alarm(tmp_path: Path) -> None:
    (report,) = analyze(broken_run(tmp_path))
    figures = Page(written(tmp_path, [report])).data
    titles = re.findall(r"<figcaption><b>([^<]+)</b>", (tmp_path / "page.html").read_text())
    assert titles[:3] == ["Structure", "Reward", "Failures"] and "Control-token hazard" in titles
    areas = figures[0]["data"]
    assert [trace["name"] for trace in areas] == [str(structure) for structure in Structure]
    for i, (_, total) in enumerate(zip(areas[0]["x"], zip(*(t["y"] for t in areas), strict=True), strict=True)):
        assert sum(total) == pytest.approx(1.0, abs=1e-4), i
    for figure in figures[:-1]:
        lines = [shape["x0"] for shape in figure["layout"]["shapes"] if shape["type"] == "line"]
        assert {report.onset_step, report.detected_step, 50} <= set(lines)
    (reward,) = figures[titles.index("Reward")]["data"]
    assert (reward["x"], reward["y"]) == (list(range(1, 71)), [0.9] * 40 + [0.1] * 30)


def test_several_runs_are_compared_and_linked(tmp_path: Path) -> None:
    for name, steps in (("rl_seed2", 30), ("rl_seed10", 70), ("other", 30)):
        broken_run(tmp_path, name, steps=steps)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trainer_state.json").write_text('{"log_history": [')
    page = Page(written(tmp_path, analyze(tmp_path)))
    words = " ".join(page.text.split())
    assert "1 of 3 runs broke" in words and "rl, 2 seeds: 1 collapsed (seed 10), 1 healthy (seed 2)" in words
    assert "1 file could not be read" in words and "trainer_state.json" in words
    anchors = {a["href"] for a in page.all("a")} - {"https://arxiv.org/abs/2606.26027"}
    assert anchors == {"#top", "#run-1", "#run-2", "#run-3"} or len(anchors) == 4
    ids = [section["id"] for section in page.all("section")]
    assert len(ids) == len(set(ids)) == 4 and anchors == {f"#{name}" for name in ids}
    assert len([svg for svg in page.all("svg") if svg.get("class") == "spark"]) == 3


def test_turns_are_counted_by_reason_and_an_empty_one_is_said_to_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in [CALL] * 6 + ["<tool_call>"] * 3 + [" "] * 1))
    page = Page(written(tmp_path, analyze(path)))
    words = " ".join(page.text.split())
    assert "60% tool_call, " in words and "Calls that parse: 67% strictly" in words
    assert re.search(r"reasonfamilyturnsshare\w+structural330%emptystructural110%", words), words
    assert "line 10empty, 10% of turns(empty)" in words


def test_one_file_asks_for_nothing_and_allows_its_own_scripts_only(tmp_path: Path) -> None:
    page = Page(written(tmp_path, analyze(broken_run(tmp_path))))
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; ")
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == digests and len(digests) == 2
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    loads = [a for name, a in page.tags if name in ("link", "img", "iframe", "object", "embed") or "src" in a]
    assert loads == [{"rel": "icon", "href": "data:,"}]
    assert all(a["href"] and a["href"].startswith(("#", "https://arxiv.org/")) for a in page.all("a"))


def evil_reports(folder: Path, evil: str) -> list[RunReport]:
    """The reports of a run of ours and of foreign logs that hold `evil` in every text they have."""
    safe = re.sub(r"[/\x00]", "_", evil)[:60]
    broken_run(folder, safe, evil)
    rows = [{"text": f"{CALL}{evil}", "model": evil, evil: 1, "stop": evil} for _ in range(9)]
    (folder / f"{safe}.jsonl").write_text("\n".join(map(json.dumps, rows)) + f"\n{{{evil}", encoding="utf-8")
    (folder / f"{safe}.csv").write_text(
        f"step,reward,{json.dumps(evil)}\n" + "\n".join(f"{t},0.5,1" for t in range(30)), encoding="utf-8"
    )
    (folder / f"{safe}x").mkdir()
    (folder / f"{safe}x" / "trainer_state.json").write_text(f'{{"log_history": [{evil}', encoding="utf-8")
    return analyze(folder)


@pytest.mark.parametrize("evil", EVIL)
def test_foreign_text_is_only_text(evil: str, tmp_path: Path) -> None:
    page = Page(written(tmp_path, evil_reports(tmp_path / "logs", evil)))
    plain = Page(written(tmp_path, evil_reports(tmp_path / "plain", "harmless")))
    known = {name for name, _ in plain.tags}
    assert {name for name, _ in page.tags} <= known
    assert len(page.scripts) == 2 and page.scripts == plain.scripts
    allowed = {key for _, attributes in plain.tags for key in attributes}
    assert {key for _, attributes in page.tags for key in attributes} <= allowed
    assert not [a for a in page.all("a") if not str(a["href"]).startswith(("#", "https://arxiv.org/"))]
    for figure in page.data:  # Plotly reads some tags in names and texts
        for trace in figure["data"]:
            assert "<" not in trace["name"] and "<b" not in trace["hovertemplate"]
    assert all(char.isprintable() or char in "\n\t" for char in page.text)


@pytest.mark.parametrize("step", [1, 2**53])
def test_numbers_at_the_edge_of_what_there_is_are_drawn(step: int, tmp_path: Path) -> None:
    edges = [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, math.inf, math.nan, 0.0]
    drawn = Curves()
    for i in range(60):
        metrics = {"reward": edges[i % 6], "grad_norm": edges[(i + 2) % 6], "entropy": edges[i % 5]}
        observed = (Observation("hazard", abs(edges[i % 6]), 8), Observation("truncated", i % 2, 8))
        drawn.take(StepRecord(step + i * step, 0.0, metrics, observed))
    (report,) = analyze(broken_run(tmp_path))
    reports = [replace(report, curves=drawn.done(), steps=(step, 60 * step, 60))]
    page = Page(written(tmp_path, [*reports, *reports]))
    assert len(page.data) >= 4
    assert not [svg for name, svg in page.tags if name == "polyline" and re.search("nan|inf", str(svg["points"]))]


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_as_it_was_written(text: str, tokens: list[str]) -> None:
    page = Page(tag("p", text, title=text) + marked(text, tokens))
    once = "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
    assert page.all("p")[0]["title"] == once
    assert {name for name, _ in page.tags} <= {"p", "mark"}
    assert page.text == once + "".join(
        char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "got the folder"), ("no/such/page.html", "expected it in a folder that exists")],
)
def test_a_place_where_no_file_can_be_is_refused_at_once(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=said):
        check_target(tmp_path / name)


def test_what_stood_there_stands_until_the_new_page_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = analyze(broken_run(tmp_path / "logs"))
    page = tmp_path / "page.html"
    page.write_text("the old one")
    page.chmod(0o640)

    def fails(*_: object) -> Iterator[str]:
        yield "half"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(PageError, match="No space left on device"):
        patch.setattr("collapsewatch.page.parts", fails)
        write_page(reports, page)
    assert page.read_text() == "the old one"
    write_page(reports, page)
    assert page.read_text().startswith("<!doctype html>") and page.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "page.html"]


def visit(chromium: Any, path: Path, width: int = 1440, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page opened as a file, and everything it did that it should not have."""
    wrong: list[str] = []
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.goto(path.as_uri())
    return page, wrong


def until(page: Any, expression: str, value: object) -> None:
    """Waits for an expression's value (Playwright's own waiting needs `eval`, which the page forbids)."""
    for _ in range(200):
        if page.evaluate(expression) == value:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression}: got {page.evaluate(expression)}, expected {value}")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 420])
def test_the_page_in_a_browser(width: int, chromium: Any, tmp_path: Path) -> None:
    for name, steps in (("rl_seed0", 70), ("rl_seed1", 30)):
        broken_run(tmp_path / "logs", name, steps=steps)
    write_page(analyze(tmp_path / "logs"), tmp_path / "page.html")
    SHOTS.mkdir(exist_ok=True)
    page, wrong = visit(chromium, tmp_path / "page.html", width)
    backgrounds = []
    for scheme in ("light", "dark"):
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        page.click("td a[href='#run-1']")
        page.screenshot(path=SHOTS / f"page-{scheme}-{width}.png", full_page=True)
        page.evaluate("scrollTo(0, 0)")
        page.click("#scheme")
    assert len(set(backgrounds)) == 2
    # A zoom into one panel of a run is a zoom into its others.
    page.evaluate("document.querySelector('#run-1 .charts').scrollIntoView()")
    panels = "[...document.querySelectorAll('#run-1 .js-plotly-plot[data-over=step]')]"
    until(page, f"{panels}.length > 1", True)
    page.evaluate(f"Plotly.relayout({panels}[0], {{'xaxis.range': [5, 9]}})")
    until(page, f"{panels}.every(panel => panel.layout.xaxis.range + '' === '5,9')", True)
    # The toolbar covers no data.
    edge = "p => [p.querySelector('.modebar'), p.querySelector('.nsewdrag')].map(e => e.getBoundingClientRect())"
    boxes = page.evaluate(f"{panels}.map({edge}).map(([bar, data]) => [bar.bottom, data.top, bar.height, data.height])")
    assert boxes and all(bottom <= top and min(sizes) > 10 for bottom, top, *sizes in boxes)
    tools = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert "Download plot as a PNG" in tools and not [tool for tool in tools if "hare" in tool]
    page.close()
    assert wrong == []


@pytest.mark.browser
def test_no_foreign_text_runs_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    reports = [r for i, evil in enumerate(EVIL) for r in evil_reports(tmp_path / f"logs{i}", evil)]
    write_page(reports, tmp_path / "page.html")
    page, wrong = visit(chromium, tmp_path / "page.html")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws every chart and opens every part
    until(page, "[...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))", True)
    for graph in page.locator(".js-plotly-plot .nsewdrag").all()[:8]:
        graph.hover(force=True)
        page.wait_for_timeout(100)
    assert page.evaluate("window.__xss") is None
    assert page.locator("img, a[href^=javascript], svg[onload], [onmouseover]").count() == 0
    page.close()
    assert wrong == []
