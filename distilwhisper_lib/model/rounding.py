"""Expert weights in fewer bytes: float16, or int8 with a scale for each row.

int8: a row of a matrix is whole numbers q from -127 to 127, and the matrix is q * scale, symmetric
and without a zero point (Jacob et al., 2018, for weights). A scale is float32, which no small
weight drives to 0, and lies beside its matrix under ``{matrix}.scale``.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import one_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_LARGEST = 127
_MATRIX = re.compile(r"(encoder|decoder)\.\d+\.fc[12]\..*weight")  # of an expert, not of its gate
_SCALE = ".scale"


def rounded(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of an expert file as it is to hold them.

    Beside int8 matrices, biases and gates are float16. Raises UserError for any other dtype.
    """
    one_of("dtype", str(dtype).removeprefix("torch."), tuple(DTYPES))
    if dtype != torch.int8:
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}
    found = {name: tensor.half() for name, tensor in tensors.items() if not _MATRIX.fullmatch(name)}
    for name in tensors.keys() - found.keys():
        found[name], found[name + _SCALE] = _rows_rounded(tensors[name].float())
    return found


def _rows_rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) -> int8 (rows, columns) and float32 (rows,)."""
    scale = matrix.abs().amax(1) / _LARGEST
    divisor = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # a row of zeros stays one
    return (matrix / divisor[:, None]).round().to(torch.int8), scale


def unrounded(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Float tensors alone: what rounded() made int8, as float32 again.

    Raises UserError for int8 where rounded() has none, and for a scale that is missing, of another
    shape or without a matrix.
    """
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    scales = {name + _SCALE: len(matrix) for name, matrix in matrices.items() if matrix.dim() == 2}
    faults = [
        f"{name} as int8, expected a matrix of fc1 or fc2"
        for name, matrix in matrices.items()
        if matrix.dim() != 2 or not _MATRIX.fullmatch(name)
    ]
    faults += [
        f"{name}, a scale without a matrix of int8"
        for name in tensors
        if name.endswith(_SCALE) and name not in scales
    ]
    faults += [
        f"{name.removesuffix(_SCALE)} as int8 without {name} of shape ({rows},)"
        for name, rows in scales.items()
        if name not in tensors
        or tensors[name].dtype == torch.int8
        or tuple(tensors[name].shape) != (rows,)
    ]
    if faults:
        raise UserError(f"expert file {path} holds {faults[0]}: write it again")
    return {
        name: matrices[name].float() * tensors[name + _SCALE].float()[:, None]
        if name in matrices
        else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }
