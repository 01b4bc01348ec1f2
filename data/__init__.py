"""Recorded episodes: their schema, the sources that record them, and the reader for training."""
