"""Carrying on when device memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def halve_on_out_of_memory(run: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`run(rows)`, or, if device memory runs out, the concatenation of its results on halves of the rows.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()
    first, second = rows.tensor_split(2)
    return torch.cat((halve_on_out_of_memory(run, first), halve_on_out_of_memory(run, second)))
