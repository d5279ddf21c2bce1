"""Who may talk to the dashboard, and what it never does: write, or leave its folder."""

from __future__ import annotations

import hashlib
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from collapsewatch.dashboards.app import create_app
from collapsewatch.dashboards.feed import Feed
from collapsewatch.dashboards.places import Place
from collapsewatch.dashboards.server import DashboardError, serve, serve_in_thread
from collapsewatch.dashboards.views import View
from collapsewatch.queries import RunError, open_run
from tests.dashboard_runs import look, write_run

QUESTION = {
    "output": "..page.children...cursor.data...nav.children...pick.value...pick.data...first.value...last.value..",
    "outputs": [
        {"id": name, "property": prop}
        for name, prop in [
            *(("page", "children"), ("cursor", "data"), ("nav", "children"), ("pick", "value"), ("pick", "data")),
            *(("first", "value"), ("last", "value")),
        ]
    ],
    "inputs": [
        {"id": "url", "property": "pathname", "value": "/overview"},
        {"id": "url", "property": "search", "value": ""},
    ],
    "state": [{"id": "cursor", "property": "data"}],
    "changedPropIds": ["url.pathname"],
}


def client(logdir: Path, host: str = "127.0.0.1", token: str = "") -> Any:
    return create_app(Feed(logdir), host, token).server.test_client()


def test_only_its_own_pages_may_ask(tmp_path: Path) -> None:
    asking = client(tmp_path)
    home = asking.get("/", headers={"Host": "127.0.0.1:8050"})
    assert home.status_code == 200
    assert home.headers["X-Frame-Options"] == "DENY" and home.headers["X-Content-Type-Options"] == "nosniff"
    policy = home.headers["Content-Security-Policy"]
    assert "unsafe-eval" not in policy and "default-src 'self'" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[::1", "", "192.0.2.7"):
        assert asking.get("/", headers={"Host": host}).status_code in (400, 403), host

    def ask(**headers: str) -> int:
        sent = {"Host": "localhost:8050"} | {name.replace("_", "-"): value for name, value in headers.items()}
        status: int = asking.post("/_dash-update-component", json=QUESTION, headers=sent).status_code
        return status

    assert ask() == ask(Origin="http://localhost:8050", Sec_Fetch_Site="same-origin") == 200
    assert ask(Origin="http://evil.example") == ask(Origin="null") == ask(Sec_Fetch_Site="cross-site") == 403


def test_from_elsewhere_a_token_is_asked_for(tmp_path: Path) -> None:
    elsewhere = {"Host": "192.0.2.7:8050"}
    asking = client(tmp_path, "0.0.0.0", "open sesame 42")
    for path in ("/", "/_dash-layout", "/_dash-dependencies", "/assets/tokens.js"):
        answer = asking.get(path, headers=elsewhere)
        assert answer.status_code == 401 and b"Token" in answer.data and b"sesame" not in answer.data
    assert asking.post("/_dash-update-component", json=QUESTION, headers=elsewhere).status_code == 401
    assert asking.post("/login", data={"token": "open sesame 43"}, headers=elsewhere).status_code == 401
    assert asking.get("/", headers={"Host": "evil.example"}).status_code == 403  # DNS rebinding, before the token
    entered = asking.post("/login", data={"token": "open sesame 42"}, headers=elsewhere)
    assert entered.status_code == 302 and "HttpOnly" in entered.headers["Set-Cookie"]
    assert "SameSite=Strict" in entered.headers["Set-Cookie"] and "sesame" not in entered.headers["Set-Cookie"]
    asking.set_cookie(
        "collapsewatch", entered.headers["Set-Cookie"].partition("=")[2].partition(";")[0], domain="192.0.2.7"
    )
    assert asking.get("/", headers=elsewhere).status_code == 200
    assert asking.post("/_dash-update-component", json=QUESTION, headers=elsewhere).status_code == 200


def test_a_token_is_made_up_and_is_in_the_address(tmp_path: Path) -> None:
    served = serve_in_thread(Feed(tmp_path), port=0, host="0.0.0.0")
    try:
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        address, _, token = url.partition("?auth_token=")
        assert len(token) >= 24
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address, timeout=10)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(url, timeout=10) as answer:  # the address lets in, and leads away from itself
            assert answer.url == address and "<title>collapsewatch</title>" in answer.read().decode()
    finally:
        served.close()


def test_a_short_token_and_a_foreign_host_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DashboardError, match=r"^--auth-token: got 5 characters, expected at least 12"):
        serve(Feed(tmp_path), host="0.0.0.0", port=0, auth_token="12345")
    with pytest.raises(DashboardError, match=r"^--port: got 0, which cannot be opened on 192\.0\.2\.7"):
        serve(Feed(tmp_path), host="192.0.2.7", port=0)


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DashboardError, match=rf"^--port: got {port}, .*--port 0") as caught:
            serve_in_thread(Feed(tmp_path), port=port)
    assert "\n" not in str(caught.value)
    with pytest.raises(DashboardError, match="--port: got 99999"):
        serve_in_thread(Feed(tmp_path), port=99999)


def test_serve_ends_on_ctrl_c_and_frees_the_port(tmp_path: Path) -> None:
    told: list[str] = []

    def announce(url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            told.append(answer.read().decode())
        told.append(url)
        raise KeyboardInterrupt

    serve(Feed(tmp_path), port=0, announce=announce)
    page, url = told
    assert "<title>collapsewatch</title>" in page
    port = int(url.rstrip("/").rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("key", ["../outside", "/etc", "..", "inside/../../outside", "link"])
def test_no_address_leads_out_of_the_folder(key: str, tmp_path: Path) -> None:
    logdir = tmp_path / "logs"
    write_run(tmp_path / "outside", steps=2)
    write_run(logdir / "inside", steps=2)
    (logdir / "link").symlink_to(tmp_path / "outside")
    feed = look(Feed(logdir))
    assert list(feed.runs) == ["inside"]
    assert list(View(feed, Place(runs=(key,)), (), 4).runs) == ["inside"]
    for path in ("/assets/../app.py", "/assets/%2e%2e/app.py", "/_dash-component-suites/../../etc/passwd"):
        answer = client(logdir).get(path, headers={"Host": "localhost"})
        assert b"create_app" not in answer.data and b"root:" not in answer.data


def test_reading_changes_no_byte_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", broken=True)
    file = tmp_path / "run" / "run.duckdb"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    feed = look(Feed(tmp_path))
    with pytest.raises(RunError):
        open_run(tmp_path / "run").lasting("steps", "SELECT 1; DROP TABLE d.steps")
    with pytest.raises(RunError):
        open_run(tmp_path / "run").query("DELETE FROM d.steps")
    feed.close()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_nothing_is_unpickled() -> None:
    folder = Path(__file__).parents[1] / "dashboards"
    used = [
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"\b(pickle\b|marshal\b|(eval|exec)\()", path.read_text())
    ]
    assert used == []
