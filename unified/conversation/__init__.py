"""What is said: segments, messages, the grammar, and the tokens that they become."""
