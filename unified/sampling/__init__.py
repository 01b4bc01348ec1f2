"""What comes next: a session samples the next token or denoises the next frame."""
