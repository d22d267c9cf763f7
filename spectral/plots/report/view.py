"""One picture of a page: a plotly figure, and what of it changes with the step."""

import base64
import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Values of one property of one trace, frame by frame.

    Attributes:
        trace: index of the trace in the figure.
        key: the property, dotted: `z`, `x`, `error_y.array`.
        values: [frame, ...] numbers, NaN where nothing was measured. With `triangle` [frame, n, n] shares in [0, 1].
        triangle: only the lower triangle is kept, as bytes of 1/254, 255 where nothing was measured.
    """

    trace: int
    key: str
    values: np.ndarray
    triangle: bool = False

    def encoded(self) -> dict[str, Any]:
        """Return JSON types: a header and the bytes in base64, little-endian."""
        if not self.triangle:
            with np.errstate(over="ignore"):  # what float32 cannot hold leaves a gap in the picture
                data = np.ascontiguousarray(self.values, dtype="<f4")
            return {"trace": self.trace, "key": self.key, "kind": "f4", "shape": list(data.shape), "data": _text(data)}
        rows, columns = np.tril_indices(self.values.shape[-1])
        lower = self.values[:, rows, columns].astype(np.float32)
        shares = np.clip(np.where(np.isfinite(lower), lower, 0.0), 0.0, 1.0)
        data = np.where(np.isfinite(lower), np.round(shares * 254), 255).astype(np.uint8)
        shape = list(self.values.shape)
        return {"trace": self.trace, "key": self.key, "kind": "triangle", "shape": shape, "data": _text(data)}


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One picture.

    Attributes:
        name: its id on the page.
        group: the section it stands in: `attention`, `weights`, `spectrum` or `curves`.
        title: what it shows.
        caption: how to read it.
        figure: layout and traces; what changes with the step is missing from it.
        choice: views of a group with different choices take turns; "" is always shown.
        steps: [frame] of the frames, empty where nothing changes but the marker of the step.
        parts: what changes, [frame, ...] each.
        note: what was left out, if anything.
        has_step_axis: whether the x axis counts steps, so that the chosen one is marked on it.
        size: (rows, columns, extra): the height is rows / columns of the width, and `extra` pixels. None keeps the
            height of the figure.
    """

    name: str
    group: str
    title: str
    caption: str
    figure: go.Figure
    choice: str = ""
    steps: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))
    parts: tuple[Part, ...] = ()
    note: str = ""
    has_step_axis: bool = False
    size: tuple[int, int, int] | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return what the page's script takes, JSON types but for the figure's numbers."""
        return {
            "name": self.name,
            "group": self.group,
            "title": self.title,
            "caption": self.caption,
            "note": self.note,
            "choice": self.choice,
            "hasStepAxis": self.has_step_axis,
            "size": self.size,
            "figure": self.figure.to_dict(),
            "steps": self.steps.tolist(),
            "parts": [part.encoded() for part in self.parts],
        }


def new_figure(*, height: int, panels: go.Figure | None = None) -> go.Figure:
    """Begin a figure; font, background and grid take the colours of the page when it is drawn.

    Args:
        height: pixels.
        panels: empty subplots to go on with; None = one panel.
    """
    return (go.Figure() if panels is None else panels).update_layout(
        template="none",
        height=height,
        margin={"l": 58, "r": 12, "t": 10, "b": 40},
        hovermode="closest",
        legend={"font": {"size": 11}, "tracegroupgap": 2},
    )


def plain(text: object) -> str:
    """Return text of the run for a label: plotly would read `<b>` and links in it."""
    return html.escape(str(text), quote=False)


def left_out(shown: int, total: int, what: str) -> str:
    """Return the note on a thinned picture, empty where nothing was left out."""
    return "" if shown >= total else f"Thinned: {shown:,} of {total:,} {what}."


def _text(data: np.ndarray) -> str:
    return base64.b64encode(data.tobytes()).decode("ascii")
