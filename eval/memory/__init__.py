"""Whether the dreamed world is still there when one comes back: return, loop, drift, cost."""
