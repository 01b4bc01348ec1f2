"""Evaluation against the real environment: truth, not similarity. An application, not installed."""
