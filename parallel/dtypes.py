"""Dtypes that sums are kept in."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over launches are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
