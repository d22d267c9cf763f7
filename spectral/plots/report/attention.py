"""Attention maps of every head, one picture per layer, on sequences that the reader can choose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from plotly.subplots import make_subplots

from spectral.config import RunConfig
from spectral.errors import UserError
from spectral.models import Transformer
from spectral.plots.report.thinning import frame_rows
from spectral.plots.report.view import Part, View, left_out, new_figure, plain
from spectral.plots.source import MissingDataError, head_name, setting
from spectral.plots.style import heat_colors
from spectral.plots.verdict import Verdict
from spectral.storage import Run, list_checkpoints, load_checkpoint

MAP_BYTES = 2_400_000
"""What all maps of the stored probe may take; a third more in the page."""
_PER_ROW = 8
_CHECKPOINTS = 6  # whose maps are computed
_POSITIONS = 64  # side of computed maps
_TITLE, _GAP = 22, 8  # pixels
_KINDS = {
    "repeat": "repeated block",
    "repeat_ood": "repeated block, untrained length",
    "random_gap": "block again after a random gap",
    "shuffled_segments": "block again, segments shuffled",
    "repeated_tokens": "blocks with an ambiguous token",
    "no_repeat": "no repeat (control)",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """Attention on one sequence.

    Attributes:
        choice: what the reader selects it by.
        steps: [frame] ascending.
        tokens: [n] one name per position.
        patterns: [frame, layer, head, n, n] shares, query before key.
        note: what was left out.
    """

    choice: str
    steps: np.ndarray
    tokens: Sequence[str]
    patterns: np.ndarray
    note: str


def attention_views(run: Run, verdict: Verdict, *, map_bytes: int = MAP_BYTES, checkpoints: bool = True) -> list[View]:
    """Return the maps of every head: the stored ones at the snapshots, those on other probes at the checkpoints.

    Args:
        run: where they come from.
        verdict: thinning keeps what lies around the transition.
        map_bytes: snapshots are thinned until the stored maps take no more.
        checkpoints: whether to load checkpoints for the other probes, and for all of them in a run without stored maps.

    Raises:
        MissingDataError: no stored patterns, and no checkpoint to compute them from.
    """
    found: list[Maps] = []
    missing: MissingDataError | None = None
    try:
        found.append(stored_maps(run, verdict, map_bytes=map_bytes))
    except MissingDataError as error:
        missing = error
    if checkpoints:
        found += computed_maps(run, _KINDS if missing else [kind for kind in _KINDS if kind != "repeat"])
    if not found:
        assert missing is not None
        raise missing
    return [view for maps in found for view in _layers(maps)]


def stored_maps(run: Run, verdict: Verdict, *, map_bytes: int = MAP_BYTES) -> Maps:
    """Return the maps that the snapshots hold.

    Raises:
        MissingDataError: the run stores none, or has no snapshot yet.
    """
    name = "circuits/attention_pattern"
    n = run.layout.attention_positions
    if n == 0 or not run.layout.n_heads:
        raise MissingDataError(run, name, "this run does not store it")
    if not len(run.steps):
        raise MissingDataError(run, name, "no snapshot was committed yet")
    size = run.layout.n_layers * run.layout.n_heads * n * (n + 1) // 2
    rows = frame_rows(run.steps, map_bytes // size, verdict)
    patterns = run.read(name, rows=rows.tolist())
    if np.isnan(patterns).all():
        raise MissingDataError(run, name, "none of its values was measured")
    return Maps(
        choice=f"{_KINDS['repeat']}, at every snapshot",
        steps=run.steps[rows],
        tokens=_names(run, _probe_tokens(run, "attention_tokens", n)),
        patterns=patterns,
        note=left_out(len(rows), len(run.steps), "snapshots have maps here"),
    )


def computed_maps(run: Run, kinds: Sequence[str] | dict[str, str]) -> list[Maps]:
    """Return maps on the first sequence of each stored kind of probe, computed from the run's checkpoints.

    Empty for runs of other programs, and where no whole checkpoint is left. Forward passes in eval mode on the CPU:
    the same checkpoint gives the same map.
    """
    tokens = {kind: found for kind in kinds if (found := _probe_tokens(run, f"{kind}_tokens", _POSITIONS)) is not None}
    models = list(_models(run)) if tokens else []
    if not models:
        return []
    steps = np.array([step for step, _ in models])
    result = []
    for kind, sequence in tokens.items():
        batch = torch.from_numpy(sequence.astype(np.int64))[None]
        with torch.no_grad():
            patterns = np.stack([model.forward_with_patterns(batch)[1][0].numpy() for _, model in models])
        choice = f"{_KINDS[kind]}, at checkpoints"
        result.append(Maps(choice=choice, steps=steps, tokens=_names(run, sequence), patterns=patterns, note=""))
    return result


def _models(run: Run) -> Iterator[tuple[int, Transformer]]:
    try:
        config = RunConfig.from_dict(run.config)
    except (UserError, TypeError, KeyError):
        return  # a run of another program
    found = list_checkpoints(run.path / "checkpoints")
    kept = np.unique(np.round(np.linspace(0, len(found) - 1, min(len(found), _CHECKPOINTS))).astype(int))
    for i in kept if found else []:
        step, path = found[i]
        try:
            weights = load_checkpoint(path)["model"]
            with torch.random.fork_rng(devices=[]):  # the constructor draws weights
                model = Transformer.from_config(config)
            model.load_state_dict(weights)
        except (UserError, KeyError, RuntimeError):
            continue  # damaged, or of another model: the page says which steps it shows
        yield step, model.eval()


def _layers(maps: Maps) -> Iterator[View]:
    n_layers, n_heads = maps.patterns.shape[1:3]
    columns = min(n_heads, _PER_ROW)
    rows = -(-n_heads // columns)
    shades = heat_colors()
    # Squared positions: the colour follows the root of the share, so that faint attention shows.
    scale = [[(i / 10) ** 2, "#" + "".join(f"{int(255 * part):02x}" for part in shades(i / 10)[:3])] for i in range(11)]
    queries = [f"from {i}: token {plain(token)}" for i, token in enumerate(maps.tokens)]
    keys = [f"to {i}: token {plain(token)}" for i, token in enumerate(maps.tokens)]
    for layer in range(n_layers):
        names = [head_name(layer, head) for head in range(n_heads)]
        grid = make_subplots(
            rows=rows, cols=columns, subplot_titles=names, horizontal_spacing=0.012, vertical_spacing=0.09 / rows
        )
        figure = new_figure(height=260, panels=grid)
        figure.update_layout(margin={"l": 22, "r": 4, "t": _TITLE, "b": 20})
        for head, name in enumerate(names):
            place = "" if head == 0 else str(head + 1)
            figure.add_heatmap(
                x=keys, y=queries, xaxis=f"x{place}", yaxis=f"y{place}", zmin=0, zmax=1, colorscale=scale,
                showscale=False, hoverongaps=False, name=name,
                hovertemplate=f"<b>{name}</b><br>%{{y}}<br>%{{x}}<br>attention %{{z:.2f}}<extra></extra>",
            )  # fmt: skip
        figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
        figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="", autorange="reversed")
        figure.update_annotations(font_size=12)
        figure.add_annotation(
            text="key →", xref="paper", yref="paper", x=0, y=0, yanchor="top", xanchor="left", showarrow=False,
            font={"size": 10},
        ).add_annotation(
            text="← query", xref="paper", yref="paper", x=0, y=1, xanchor="right", yanchor="top", textangle=-90,
            showarrow=False, font={"size": 10},
        )  # fmt: skip
        parts = tuple(
            Part(trace=head, key="z", values=maps.patterns[:, layer, head], triangle=True) for head in range(n_heads)
        )
        yield View(
            name=f"attention-{_slug(maps.choice)}-{layer}",
            group="attention",
            title=f"Layer {layer}",
            caption="",
            figure=figure,
            choice=maps.choice,
            steps=maps.steps,
            parts=parts,
            note=maps.note,
            size=(rows, columns, _TITLE + 20 + _GAP * rows),
        )


def _probe_tokens(run: Run, name: str, n: int) -> np.ndarray | None:
    """Return the first n tokens of the first sequence of a stored probe, or None without it."""
    try:
        found = run.probe(name)
    except KeyError:
        return None
    return np.asarray(found.reshape(-1, found.shape[-1])[0, :n])


def _names(run: Run, tokens: np.ndarray | None) -> list[str]:
    if tokens is None:
        return ["?"] * run.layout.attention_positions
    if setting(run, "data") == "text":
        return [repr(chr(int(token)))[1:-1] for token in tokens]
    return [str(int(token)) for token in tokens]


def _slug(choice: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in choice)
