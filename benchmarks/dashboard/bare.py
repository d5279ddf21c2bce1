"""A Dash page of nothing but one figure of three points, served: how soon any page of Dash and Plotly is drawn."""

from __future__ import annotations

import json

from dash import Dash, dcc
from werkzeug.serving import make_server

app = Dash(__name__, serve_locally=True, add_log_handler=False)
app.layout = dcc.Graph(figure={"data": [{"type": "scatter", "x": [1, 2, 3], "y": [1, 3, 2]}], "layout": {}})
server = make_server("127.0.0.1", 0, app.server, threaded=True)
print(json.dumps({"port": server.server_address[1]}), flush=True)
server.serve_forever()
