"""Load of the player: `python -m eval.play_load`, and the screenshots of its page."""
