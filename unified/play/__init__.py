"""Play a model: a page and a server on which people and programs share one embedded world."""
