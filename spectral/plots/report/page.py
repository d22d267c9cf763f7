"""`report.html`: one file that holds everything it shows and asks the network for nothing."""

import os
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from spectral.errors import RunDirectoryError
from spectral.plots.report.payload import ENVIRONMENT, gather, to_json
from spectral.storage import open_run, write_text_atomic
from spectral.version import __version__

FILE_NAME = "report.html"
_HERE = Path(__file__).parent


def write_report(run_path: str | os.PathLike[str], *, output: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a run; live and crashed runs are shown as far as they got.

    Args:
        run_path: a run folder, or its results file.
        output: folder for the file; None takes the run folder. It is made when missing.

    Returns:
        The file, which appears whole or not at all.

    Raises:
        RunDirectoryError: no run there, or the folder cannot be written.
        ResultsFileError: a damaged results file.
    """
    run = open_run(run_path)
    text = render_report(gather(run))
    path = (run.path if output is None else Path(output)) / FILE_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror}); choose another folder or free some space"
        raise RunDirectoryError(msg) from error
    return path


def render_report(content: dict[str, Any]) -> str:
    """Return the page with everything inside it.

    Args:
        content: from `gather`.
    """
    return render_page(
        mode="report",
        title=content["name"],
        status=content["statusText"],
        note=content["note"],
        summary=Markup(content["html"]["summary"]),
        details=Markup(content["html"]["details"]),
        content=Markup(to_json(content)),
        # The full bundle: the package ships no partial one, and copies of other builds would not follow its version.
        plotly=Markup(f"<script>{get_plotlyjs()}</script>"),
    )


def render_page(**content: Any) -> str:
    """Return the frame of the page, filled: `title`, `status` and `note` are escaped, the rest is Markup."""
    known = {"summary": "", "details": "", "content": "null", "dash": "", "version": __version__}
    parts = {"css": Markup(_text("page.css")), "script": Markup(_text("page.js"))}
    return ENVIRONMENT.get_template("page.html.jinja").render(**(known | parts | content))


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
