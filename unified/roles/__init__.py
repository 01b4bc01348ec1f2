"""Who takes part: an agent that acts, and a world that Gymnasium can step."""
