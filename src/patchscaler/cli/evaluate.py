"""`patchscaler evaluate`: placeholder until the evaluation lands."""

from __future__ import annotations

from patchscaler.errors import InputError


def evaluate() -> None:
    """Judge a model on fixed pairs."""
    raise InputError("not yet part of this build")
