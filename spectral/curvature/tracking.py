"""Eigenvectors followed through time: which eigenpair of this snapshot is which of the one before.

Eigenvalues move and cross; their ranks say little about what they belong to. An eigenvector keeps its identity while it
changes by less than half of its squared norm from one snapshot to the next, wherever its rank goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from spectral.curvature.sums import inner_products

INHERITS = 0.5  # squared overlap: among orthonormal vectors only one can reach more than this with a given one
MISSING = -1  # identity of a row without an eigenvector


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracking:
    """How one snapshot's eigenvectors continue those of the snapshot before.

    Attributes:
        identity: [k] int64, a number that stays with an eigenvector while its rank changes; new vectors get numbers not
            used before; -1 for a missing row.
        overlap: [k] squared cosine with the vector of the snapshot before that the identity came from; for a new vector
            the largest one with any of them. Range [0, 1], chance 1/n. NaN at the first snapshot and for missing rows.
            Inside a cluster vectors rotate freely and it may be low although the identity is kept.
        crossings: pairs of inherited identities whose order by value is the reverse of the one before. Pairs inside one
            cluster, now or before, have no order and are not counted.
        subspace_overlap: |X X_prev'|_F² / k, how much of the space of these k vectors lies inside that of the snapshot
            before; range [0, 1], chance k_prev / n. NaN at the first snapshot. Unlike single overlaps it does not see
            crossings and rotations among the vectors.
    """

    identity: Int[Tensor, " k"]
    overlap: Float[Tensor, " k"]
    crossings: int
    subspace_overlap: float


class EigenvectorTracker:
    """Gives eigenvectors numbers that survive crossings.

    Vectors are compared by squared cosines, so their signs never matter, and paired by the assignment of largest sum.
    An identity is inherited where the squared cosine is at least 1/2: of orthonormal vectors only one can have more
    than that with a given vector, so the pairing is unambiguous. In an avoided crossing the identity follows the
    vector, not the rank: values that approach and part again have exchanged their identities, if the snapshots lie
    further apart than the encounter lasts.

    Values closer than the sum of their uncertainties form a cluster, whose vectors are any basis of its space. There
    single cosines mean nothing, and the spaces are compared instead: a pair may be matched where at least half of the
    smaller cluster's space lies inside the other one (single vectors are clusters of one). Then the cluster's
    identities stay with it as a set; which member carries which number is decided by the same assignment and means
    nothing until the cluster dissolves.

    One snapshot of memory: a vector that is not among the k given ones returns under a new number. A snapshot without
    any vector is skipped. Holds k * n numbers on the vectors' device.
    """

    def __init__(self) -> None:
        self._next_identity = 0
        self._previous: _Snapshot | None = None

    def update(
        self,
        values: Float[Tensor, " k"],
        vectors: Float[Tensor, "rows n"],
        uncertainties: Float[Tensor, "..."] | None = None,
    ) -> Tracking:
        """Compare a snapshot's eigenvectors with those of the last one and remember them instead.

        Args:
            values: [k] eigenvalues; NaN here or in a vector marks a missing row. k may change between snapshots.
            vectors: [k, n] orthonormal rows, copied. Their order and signs are free.
            uncertainties: [k] distance below which two values cannot be told apart, unit of `values`: the residual
                norms (an eigenvector is off by residual / gap) or error bounds. None = no clusters; a value that is not
                finite belongs to none.

        Raises:
            ValueError: shapes that do not fit each other, or vectors of another length than before.
        """
        k = len(values)
        if vectors.ndim != 2 or len(vectors) != k or (uncertainties is not None and tuple(uncertainties.shape) != (k,)):
            given = None if uncertainties is None else tuple(uncertainties.shape)
            msg = f"values {tuple(values.shape)}, vectors {tuple(vectors.shape)} and uncertainties {given} do not fit"
            raise ValueError(msg)
        numbers = values.detach().double().cpu().numpy()
        # A sum is finite only where every entry is.
        rows = np.flatnonzero(np.isfinite(numbers) & torch.isfinite(vectors.detach().sum(dim=1)).cpu().numpy())
        if not len(rows):
            nothing = torch.full((k,), float("nan"), dtype=torch.float64)
            return Tracking(
                identity=torch.full((k,), MISSING),
                overlap=nothing,
                crossings=0,
                subspace_overlap=float("nan"),
            )
        bounds = np.zeros(k) if uncertainties is None else uncertainties.detach().double().cpu().numpy()
        present = vectors.detach()[torch.from_numpy(rows).to(vectors.device)]  # indexing copies
        current = _Snapshot(
            values=numbers[rows],
            vectors=present,
            clusters=_clusters(numbers[rows], bounds[rows]),
            identity=np.full(len(rows), MISSING),
        )
        previous = self._previous
        overlap = np.full(k, np.nan)
        identity = np.full(k, MISSING)
        crossings, subspace_overlap = 0, float("nan")
        if previous is not None:
            squares = _squared_overlaps(current, previous)
            partner = _match(squares, current.clusters, previous.clusters)
            matched = partner >= 0
            current.identity[matched] = previous.identity[partner[matched]]
            shown = squares.max(axis=1)
            shown[matched] = squares[matched, partner[matched]]
            overlap[rows] = shown
            crossings = _crossings(current, previous, partner)
            subspace_overlap = min(float(squares.sum()) / len(rows), 1.0)
        fresh = np.flatnonzero(current.identity == MISSING)
        current.identity[fresh] = self._next_identity + np.arange(len(fresh))
        self._next_identity += len(fresh)
        identity[rows] = current.identity
        self._previous = current
        return Tracking(
            identity=torch.from_numpy(identity),
            overlap=torch.from_numpy(overlap),
            crossings=crossings,
            subspace_overlap=subspace_overlap,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as tensors and plain numbers, for `torch.save` and `torch.load(weights_only=True)`."""
        previous = self._previous
        if previous is None:
            return {"next_identity": self._next_identity}
        return {
            "next_identity": self._next_identity,
            "values": torch.from_numpy(previous.values.copy()),
            "vectors": previous.vectors.clone(),
            "clusters": torch.from_numpy(previous.clusters.copy()),
            "identity": torch.from_numpy(previous.identity.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the vectors may come from another device."""
        self._next_identity = int(state["next_identity"])
        self._previous = None
        if "vectors" in state:
            self._previous = _Snapshot(
                values=state["values"].cpu().numpy().copy(),
                vectors=state["vectors"].clone(),
                clusters=state["clusters"].cpu().numpy().copy(),
                identity=state["identity"].cpu().numpy().copy(),
            )


@dataclass
class _Snapshot:
    """The rows of a snapshot that hold an eigenvector: values [k], vectors [k, n], cluster and identity [k]."""

    values: np.ndarray
    vectors: Tensor
    clusters: np.ndarray
    identity: np.ndarray


def _clusters(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return a cluster number per value: neighbours closer than the sum of their bounds belong together."""
    order = np.argsort(values, kind="stable")
    known = np.where(np.isfinite(bounds), bounds, 0.0)[order]
    sorted_values = values[order]
    apart = np.diff(sorted_values) > known[1:] + known[:-1]
    # Equal values without bounds are nobody's cluster.
    apart |= (known[1:] == 0) & (known[:-1] == 0)
    clusters = np.empty(len(values), dtype=np.int64)
    clusters[order] = np.concatenate([[0], np.cumsum(apart)])
    return clusters


def _squared_overlaps(current: _Snapshot, previous: _Snapshot) -> np.ndarray:
    """Return the squared cosines [k, k_prev]; only this small matrix leaves the device."""
    if previous.vectors.shape[1] != current.vectors.shape[1]:
        msg = f"vectors of length {current.vectors.shape[1]} after vectors of length {previous.vectors.shape[1]}"
        raise ValueError(msg)
    before = previous.vectors.to(device=current.vectors.device, dtype=current.vectors.dtype)
    cosines = inner_products(current.vectors, before).cpu().numpy()
    return np.asarray(np.clip(cosines**2, 0.0, 1.0))


def _match(squares: np.ndarray, clusters: np.ndarray, clusters_before: np.ndarray) -> np.ndarray:
    """Return for every row the row of the snapshot before that it continues, or -1."""
    members = (clusters[:, None] == np.unique(clusters)).astype(float)  # [k, clusters]
    members_before = (clusters_before[:, None] == np.unique(clusters_before)).astype(float)
    shared = members.T @ squares @ members_before  # squared norm that one cluster's space has inside the other
    smaller = np.minimum(members.sum(axis=0)[:, None], members_before.sum(axis=0)[None, :])
    allowed = (members @ (shared >= INHERITS * smaller) @ members_before.T) > 0
    # An allowed pair beats any number of forbidden ones; among the allowed the cosines decide.
    rows, columns = linear_sum_assignment(np.where(allowed, 1.0 + squares, 0.0), maximize=True)
    partner = np.full(len(squares), -1)
    inherits = allowed[rows, columns]
    partner[rows[inherits]] = columns[inherits]
    return partner


def _crossings(current: _Snapshot, previous: _Snapshot, partner: np.ndarray) -> int:
    rows = np.flatnonzero(partner >= 0)
    columns = partner[rows]
    now = np.sign(current.values[rows][:, None] - current.values[rows])
    before = np.sign(previous.values[columns][:, None] - previous.values[columns])
    same = current.clusters[rows][:, None] == current.clusters[rows]
    same |= previous.clusters[columns][:, None] == previous.clusters[columns]
    return int(((now * before < 0) & ~same).sum()) // 2
