"""Pages to look at: strips of frames, curves, the demonstration."""
