"""What is said, by whom, in which order; words, actions and frames as one sequence."""
