"""A few kills of each writer; `python -m tests.fuzz.kills` does a hundred."""

import subprocess
import sys


def test_a_writer_that_is_killed_leaves_the_old_the_new_or_nothing_that_passes_for_whole():
    # In a process of its own: it forks, which one that has threads must not.
    command = [sys.executable, "-m", "tests.fuzz.kills", "--kills", "2", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "no fault" in done.stdout
