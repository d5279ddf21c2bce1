"""Who may talk to the dashboard: its own pages, addressed by a name of this machine, and by token from elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from flask import Flask, Response, abort, make_response, redirect, request
from werkzeug.wrappers import Response as Answer

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names under which this machine answers itself."""

COOKIE = "collapsewatch"
_ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>collapsewatch</title>
<meta name="viewport" content="width=device-width">
<main><h1>collapsewatch</h1><p>{said}</p>
<form method="post" action="/login"><label>Token <input name="token" type="password" autofocus
autocomplete="current-password"></label> <button>Open</button></form></main></html>"""


def guard(server: Flask, host: str, token: str, scripts: Iterable[str]) -> None:
    """Answers only what is addressed to this machine, comes from the app's own pages and, with a `token`, knows it.

    `host` is the address listened on. A name that is not this machine's is DNS rebinding; an address is never.
    """
    policy = (
        # `data:` and `blob:` are exported pictures; styles are inline because Plotly writes them so.
        f"default-src 'self'; script-src 'self' {' '.join(scripts)}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )
    names = LOOPBACK | {host}
    if host not in LOOPBACK:
        names |= {socket.gethostname(), socket.getfqdn()}
    secret = hashlib.sha256(f"collapsewatch {token}".encode()).hexdigest()

    @server.before_request
    def refuse_strangers() -> Answer | None:
        asked = _hostname(request.host)
        if asked not in names and not (host not in LOOPBACK and _is_address(asked)):
            abort(403)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("Origin")
            if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
                abort(403)
            if origin is not None and origin.partition("//")[2] != request.host:
                abort(403)
        return _login(token, secret) if token else None

    @server.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    server.config["MAX_CONTENT_LENGTH"] = 1 << 20  # a browser sends a few kilobytes


def _login(token: str, secret: str) -> Answer | None:
    """None for who has shown the token before; the page that asks for it, or the way in, for who has not."""
    if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), secret.encode()):  # text must be ASCII there
        return None
    given = request.form.get("token") if request.method == "POST" and request.path == "/login" else None
    given = given if given is not None else request.args.get("auth_token")
    if given is not None and hmac.compare_digest(given.encode(), token.encode()):
        # Away from the address that holds the token: it shall not stay in the browser's history.
        entered = make_response(redirect("/"))
        entered.set_cookie(COOKIE, secret, httponly=True, samesite="Strict")
        return entered
    said = "That is not the token." if given is not None else "The token was printed where the dashboard was started."
    return make_response(_ASK.format(said=said), 401)


def _hostname(host: str | None) -> str:
    try:
        return urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
