"""How many threads draw a frame soonest: small models on few cores lose time by sharing work."""

import time
from collections.abc import Callable

import torch

from unified.modeling import UnifiedModel


def tune_threads(model: UnifiedModel) -> int:
    """Chooses one thread, or as many as torch has, whichever draws a frame sooner.

    Args:
        model: On a CPU; on another device nothing is changed.

    Returns:
        The number of threads from now on.
    """
    most = torch.get_num_threads()
    if model.device.type != "cpu" or most == 1:
        return most
    config = model.config
    ids = torch.tensor([[config.task_token_id, config.text_token_ids[0]]])
    best = quickest((1, most), lambda: model.generate(ids, query="forward", seed=0))
    torch.set_num_threads(best)
    return best


def quickest(counts: tuple[int, ...], work: Callable[[], object], rounds: int = 3) -> int:
    """The number of threads whose best round of work is the shortest; they take turns."""
    seconds = dict.fromkeys(counts, float("inf"))
    for _ in range(rounds):
        for count in counts:
            torch.set_num_threads(count)
            began = time.perf_counter()
            work()
            seconds[count] = min(seconds[count], time.perf_counter() - began)
    return min(counts, key=lambda count: seconds[count])
