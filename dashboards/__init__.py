"""The dashboard: a Dash app over the store of the runs in a log folder; it reads, and never writes.

`server.serve` is what the command line calls, `server.serve_in_thread` serves beside a training in the same process.
Nothing is imported here: Dash takes a second, in which the command line reads runs already.
"""
