"""Everything that needs a GPU, in one command of less than nine minutes: tests, then speed.

python -m eval.gpu_check --out runs/gpu

Each step runs in a process of its own and has its own time limit. A step that fails or hangs is
reported, and the next one begins.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from unified.command import command

BUDGET = 520.0
"""Seconds, for all steps together."""


@dataclass(frozen=True, kw_only=True)
class GpuCheckArguments:
    """Run what needs a GPU."""

    out: Path = Path("runs/gpu")
    """Folder for logs and tables."""


@dataclass(frozen=True)
class Step:
    """A command with a time limit in seconds."""

    name: str
    command: list[str]
    limit: float


def steps(out: Path) -> list[Step]:
    """The tests, and the benchmark part by part."""
    python = [sys.executable, "-m"]
    speed = [*python, "eval.speed", "--rounds", "5"]

    def part(*names: str) -> list[str]:
        return [*speed, "--out", str(out / names[0]), "--parts", *names]

    return [
        Step("tests", [*python, "pytest", "-q", "-m", "gpu", "tests"], 150),
        Step("play", part("play"), 100),
        Step("training and sampling", part("train", "sample", "profile"), 130),
        Step("back ends by length", part("scaling"), 100),
        Step("sizes", part("sizes"), 120),
        Step("large", part("large"), 80),
    ]


def run(step: Step, log: Path, seconds: float) -> str:
    """Runs a step, its output going to the log as well; returns how it ended."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds
        )
        output, ending = done.stdout, "ok" if not done.returncode else f"exit {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", "ran out of time"
    except OSError as error:
        output, ending = str(error).encode(), "could not start"
    log.write_bytes(output)
    lines = output.decode(errors="replace").replace("\r", "\n").splitlines()
    print("\n".join(line for line in lines if "it/s" not in line and "s/it" not in line))
    return f"{ending} ({time.monotonic() - start:.0f} s)"


def main() -> None:
    """Command line."""
    arguments = tyro.cli(GpuCheckArguments, description=__doc__)
    with command("eval.gpu_check"):
        if not torch.cuda.is_available():
            raise ValueError("torch sees no CUDA device here")
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    begin, endings = time.monotonic(), {}
    for step in steps(arguments.out):
        left = BUDGET - (time.monotonic() - begin)
        print(f"\n=== {step.name}", flush=True)
        if left < 10:
            endings[step.name] = "no time was left"
            continue
        name = step.name.replace(" ", "-")
        endings[step.name] = run(step, arguments.out / f"{name}.log", min(step.limit, left))
    print("\n=== report")
    for name, ending in endings.items():
        print(f"{name}: {ending}", flush=True)
    raise SystemExit(0 if all(ending.startswith("ok") for ending in endings.values()) else 1)


if __name__ == "__main__":
    main()
