"""Whether the model is a true world: effects, words, the dream, the open loop, questions."""
