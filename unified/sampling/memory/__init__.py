"""What a session keeps of what it saw: each mechanism is a file."""
