"""What is not needed is not imported: `--help` answers at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.prepare import SOURCES

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "diffusers", "datasets", "gymnasium", "minigrid", "peft", "av"}
MAX_SECONDS = 1.5
REPORT = """
import json, sys, time
try:
    {statement}
except SystemExit as ended:
    assert not ended.code
print()
loaded = sorted({{name.split(".")[0] for name in sys.modules}})
print(json.dumps([time.process_time(), loaded]))
"""


def measured(statement):
    """CPU seconds of a process that runs a statement, and the packages that it has imported."""
    command = [sys.executable, "-c", REPORT.format(statement=statement)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, loaded = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(loaded)


def run_help(module, *arguments):
    argv = ["the command", *arguments, "--help"]
    return f"sys.argv = {argv!r}; from {module} import main; main()"


def test_importing_unified_imports_nothing_else():
    _, loaded = measured("import unified")
    assert not loaded & {*HEAVY, "numpy", "PIL", "tyro"}


@pytest.mark.parametrize(
    "statement",
    [
        run_help("unified.cli"),
        run_help("unified.cli", "prompt"),
        run_help("data.prepare"),
    ],
)
def test_help_imports_neither_torch_nor_other_heavy_packages(statement):
    seconds, loaded = measured(statement)
    assert not loaded & HEAVY
    assert seconds < MAX_SECONDS


@pytest.mark.parametrize(
    "statement",
    [
        run_help("data.record"),
        run_help("data.inspect"),
        *(run_help("data.prepare", source) for source in SOURCES),
    ],
)
def test_the_help_of_a_source_waits_for_no_model(statement):
    seconds, loaded = measured(statement)
    assert not loaded & {"torch", "transformers", "diffusers"}
    assert seconds < MAX_SECONDS


@pytest.mark.parametrize(
    "name", ["Sequence", "Segment", "action_segment", "ActionSpace", "NamedActions", "Kind"]
)
def test_conversations_and_actions_wait_for_no_model(name):
    _, loaded = measured(f"from unified import {name}")
    assert not loaded & {"torch", "transformers"}
