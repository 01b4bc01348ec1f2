"""Where episodes come from, and where they go: one file for each format or environment."""
