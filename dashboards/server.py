"""Serving the app: on this machine only, from a threaded server without a debugger."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from .app import LOOPBACK, create_app


class DashboardError(OSError):
    """The dashboard cannot be served as asked; the message is one line."""


class _Quiet(WSGIRequestHandler):
    """A browser asks every second: requests are not news, errors are still logged."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class Handle:
    """A dashboard being served: `url` to open, `close()` to stop; closing twice is harmless."""

    def __init__(self, server: BaseWSGIServer, url: str) -> None:
        self.url = url
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


def serve_in_thread(logdir: Path, port: int = 8050, host: str = "127.0.0.1") -> Handle:
    """Serves the runs of `logdir` from a background thread; port 0 takes a free one.

    Raises:
        DashboardError: the port is taken or not allowed, or `host` is not this machine.
    """
    if host not in LOOPBACK:
        raise DashboardError(
            f"--host: got {host!r}, expected one of {', '.join(sorted(LOOPBACK))}: without a login the "
            "dashboard is served on this machine only (reach it from elsewhere through an SSH tunnel)"
        )
    if not 0 <= port <= 65535:
        raise DashboardError(f"--port: got {port}, expected 0 (any free port) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise DashboardError(
            f"--port: got {port}, which cannot be opened on {host} ({error}); choose another with --port, "
            "or --port 0 for any free one"
        ) from error
    # Bound here, because werkzeug ends the whole process on a taken port; the server keeps a duplicate.
    with listener:
        server = make_server(
            host,
            port,
            create_app(logdir).server,
            threaded=True,
            request_handler=_Quiet,
            fd=listener.fileno(),
        )
    name = f"[{host}]" if ":" in host else host
    return Handle(server, f"http://{name}:{server.server_address[1]}/")


def serve(
    logdir: Path,
    host: str = "127.0.0.1",
    port: int = 8050,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves the runs of `logdir` until interrupted (Ctrl-C returns); `announce` gets the open address.

    Raises:
        DashboardError: the port is taken or not allowed, or `host` is not this machine.
    """
    handle = serve_in_thread(logdir, port=port, host=host)
    try:
        announce(handle.url)
        handle.wait()
    except KeyboardInterrupt:
        pass
    finally:
        handle.close()
