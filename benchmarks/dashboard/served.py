"""The dashboard in a process of its own, which says of every request how long it took and how much it sent."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from flask import Response, g, request
from werkzeug.serving import make_server

from collapsewatch.dashboards.views import read_ahead

feed = read_ahead(Path(sys.argv[1]))
from collapsewatch.dashboards.app import create_app  # noqa: E402  # as the command line does it

app = create_app(feed)


@app.server.before_request
def begin() -> None:
    g.begun = time.perf_counter()


@app.server.after_request
def end(response: Response) -> Response:
    changed = (request.get_json(silent=True) or {}).get("changedPropIds", []) if request.method == "POST" else []
    sent = response.calculate_content_length() or 0
    ms = 1000 * (time.perf_counter() - g.begun)
    # In one piece, for several threads answer.
    sys.stdout.write(json.dumps({"path": request.path, "changed": changed, "ms": ms, "bytes": sent}) + "\n")
    sys.stdout.flush()
    return response


server = make_server("127.0.0.1", 0, app.server, threaded=True)
print(json.dumps({"port": server.server_address[1]}), flush=True)
server.serve_forever()
