"""One measured value on its way into a dataset."""

from typing import Any

import numpy as np

from spectral.storage.schema import DatasetSpec


def stored_value(spec: DatasetSpec, value: Any) -> np.ndarray:
    """Return one row of a dataset in its stored type.

    Raises:
        ValueError: a wrong shape, or values that the stored type cannot hold.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    array = np.asarray(value)
    if array.shape != spec.row_shape:
        msg = f"{spec.path} has row shape {spec.row_shape} over {spec.dims[1:]}, got {array.shape}; reshape it"
        raise ValueError(msg)
    if array.dtype.kind == "c" or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        exact = array.dtype.kind in "biuf" and bool(np.all(array == array.astype(spec.dtype)))
        if not exact:
            msg = f"{spec.path} is stored as {spec.dtype}, which cannot hold {array.dtype} values; convert them"
            raise ValueError(msg)
    return array.astype(spec.dtype)
