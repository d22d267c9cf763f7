"""A Dash application that hands the page new content as the run grows.

Dash asks the run again every two seconds and passes content to the page's own script, which draws it as in
`report.html`. All scripts are served from this machine.
"""

import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import dash
import flask
import plotly
from dash import Input, Output, State, dcc, html
from markupsafe import Markup
from werkzeug.serving import make_server

from spectral.plots.live.sockets import is_loopback
from spectral.plots.live.watch import RunWatch
from spectral.plots.report import render_page

REFRESH_SECONDS = 2.0
_DASH_PARTS = Markup("<div hidden>{%app_entry%}</div><footer hidden>{%config%}{%scripts%}{%renderer%}</footer>")
_RECEIVE = """
function (content, beat) {
  if (content && content !== window.spectralSeen) {
    window.spectralPage.receive(JSON.parse(content));
    window.spectralSeen = content;
  }
  window.spectralPage.beat(beat);
  return "";
}
"""


def make_app(watch: RunWatch, *, refresh_seconds: float = REFRESH_SECONDS) -> dash.Dash:
    """Return the application for one run.

    Args:
        watch: the run.
        refresh_seconds: between two looks at it.
    """
    # A folder that is not there: Dash would serve every file of the one it is given.
    nothing = str(Path(__file__).parent / "no_assets")
    app = dash.Dash(
        "spectral live", update_title="", title=" ", assets_folder=nothing, include_assets_files=False, enable_mcp=False
    )
    # The frame holds no name of the run: Dash fills in its placeholders wherever they stand.
    app.index_string = render_page(
        mode="live", title="live", status="connecting", note="", dash=_DASH_PARTS,
        plotly=Markup('<script src="/plotly.min.js"></script>'),
    )  # fmt: skip
    app.layout = html.Div(
        [
            dcc.Interval(id="tick", interval=int(1000 * refresh_seconds)),
            dcc.Store(id="seen", data=""),
            dcc.Store(id="content"),
            dcc.Store(id="beat"),
            dcc.Store(id="drawn"),
        ]
    )

    app.server.add_url_rule("/plotly.min.js", view_func=_plotly)

    @app.callback(
        Output("content", "data"),
        Output("seen", "data"),
        Output("beat", "data"),
        Input("tick", "n_intervals"),
        State("seen", "data"),
    )
    def _look(_: int | None, seen: str) -> tuple[Any, Any, dict[str, str]]:
        version, beat = watch.look()
        if version == seen:
            return dash.no_update, dash.no_update, beat | {"at": str(time.time())}
        return watch.content(), version, beat | {"at": str(time.time())}

    app.clientside_callback(
        _RECEIVE, Output("drawn", "data"), Input("content", "data"), Input("beat", "data"), prevent_initial_call=True
    )
    return app


def _plotly() -> flask.Response:
    folder = f"{plotly.__path__[0]}/package_data"
    return flask.send_from_directory(folder, "plotly.min.js", mimetype="text/javascript", max_age=3600)


def serve(watch: RunWatch, listening: socket.socket, *, linger: float | None = None) -> None:
    """Serve the page of a run until the process is interrupted.

    Args:
        watch: the run.
        listening: where, from `listen`.
        linger: end by itself so many seconds after the run has ended; None = never.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request would bury everything else
    host, port = listening.getsockname()[:2]
    app = make_app(watch)
    if is_loopback(listening):
        # Else a page from elsewhere could read the run through a name of its own that resolves to this machine.
        app.server.config["TRUSTED_HOSTS"] = ["127.0.0.1", "localhost", "[::1]"]
    server = make_server(host, port, app.server, threaded=True, fd=listening.fileno())
    server.daemon_threads = True  # type: ignore[attr-defined]
    if linger is not None:
        threading.Thread(target=_end_after, args=(server, watch, linger), daemon=True).start()
    try:
        server.serve_forever()
    finally:
        server.server_close()


def _end_after(server: Any, watch: RunWatch, linger: float) -> None:
    ended = None
    while ended is None or time.monotonic() - ended < linger:
        time.sleep(0.5)
        watch.look()
        ended = (ended or time.monotonic()) if watch.finished else None
    server.shutdown()
