"""Serving the app: on this machine unless asked otherwise, from a threaded server without a debugger."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from .access import LOOPBACK
from .app import create_app
from .feed import Feed

LEAST_TOKEN = 12
"""Characters of a token of one's own: fewer can be guessed."""


class DashboardError(OSError):
    """The dashboard cannot be served as asked; the message is one line."""


class _Quiet(WSGIRequestHandler):
    """A browser asks every second: requests are not news, errors are still logged."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class Handle:
    """A dashboard being served: `url` to open, `close()` to stop; closing twice is harmless."""

    def __init__(self, server: BaseWSGIServer, url: str, feed: Feed) -> None:
        self.url = url
        self._feed = feed
        self._server = server
        # A daemon, so that a dashboard never keeps a finished training run alive.
        self._thread = threading.Thread(target=server.serve_forever, name="collapsewatch-dashboard", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when the dashboard has stopped."""
        self._thread.join()

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._feed.close()


def serve_in_thread(feed: Feed, port: int = 8050, host: str = "127.0.0.1", auth_token: str = "") -> Handle:
    """Serves the runs of a feed from a background thread; port 0 takes a free one.

    On another `host` than this machine a token is asked for: `auth_token`, or one that is made up and is in `url`.

    Raises:
        DashboardError: the port is taken or not allowed, the host is no address of this machine, the token too short.
    """
    if not 0 <= port <= 65535:
        raise DashboardError(f"--port: got {port}, expected 0 (any free port) to 65535")
    if auth_token and len(auth_token) < LEAST_TOKEN:
        raise DashboardError(f"--auth-token: got {len(auth_token)} characters, expected at least {LEAST_TOKEN}")
    token = auth_token or ("" if host in LOOPBACK else secrets.token_urlsafe(24))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise DashboardError(
            f"--port: got {port}, which cannot be opened on {host} ({error}); choose another with --port, or --port 0 "
            "for any free one, and a --host that is an address of this machine"
        ) from error
    # Bound here, because werkzeug ends the whole process on a taken port; the server keeps a duplicate.
    with listener:
        server = make_server(
            host,
            port,
            create_app(feed, host, token).server,
            threaded=True,
            request_handler=_Quiet,
            fd=listener.fileno(),
        )
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{server.server_address[1]}/"
    return Handle(server, f"{url}?auth_token={token}" if token and not auth_token else url, feed)


def serve(
    feed: Feed,
    host: str = "127.0.0.1",
    port: int = 8050,
    announce: Callable[[str], None] = lambda url: None,
    auth_token: str = "",
) -> None:
    """Serves the runs of a feed until interrupted (Ctrl-C returns); `announce` gets the open address.

    Raises:
        DashboardError: as `serve_in_thread`.
    """
    handle = serve_in_thread(feed, port, host, auth_token)
    try:
        announce(handle.url)
        handle.wait()
    except KeyboardInterrupt:
        pass
    finally:
        handle.close()
