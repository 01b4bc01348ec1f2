"""How a frame loses its noise: the levels it goes through, the solvers, and guidance."""
