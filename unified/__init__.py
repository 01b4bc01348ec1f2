"""Unified: one transformer that is both the agent and the world."""
