"""Compiled functions: for fixed shapes, shared by all models of a process."""

from collections.abc import Callable
from typing import Any

import torch

VARIANTS = 64
"""Of one function: each model, batch size, length and mode of a process compiles its own. Torch
gives up at eight, and runs the rest uncompiled."""


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles once for each shape, as a whole: what torch cannot follow is an error."""
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    return torch.compile(function, dynamic=False, fullgraph=True)
