"""Training rows: parts of recorded episodes, what is said in them, and what is noised."""
