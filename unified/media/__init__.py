"""Frames and actions as numbers and tokens."""
