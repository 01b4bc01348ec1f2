"""Compiled functions: for fixed shapes, shared by all models of a process."""

from collections.abc import Callable
from typing import Any

import torch

VARIANTS = 64
"""Greatest number of compiled variants of one function: one for each model, batch size, length and
mode. Torch's own limit is eight, beyond which it runs the function uncompiled."""


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function as one graph, once for each shape; a graph break is an error."""
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    return torch.compile(function, dynamic=False, fullgraph=True)
