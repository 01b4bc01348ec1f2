"""Is the dreamed world still there when one comes back? Return, loop, off screen, drift, cost.

The small form (the default, two memories) takes about ten minutes on one core; --episodes 24
--longest 512 --frames 1000 takes hours. What was measured stays in the folder, and a second run
goes on from there.

python -m eval.memory --model babyai --out runs/memory
"""

import tyro

from eval.memory.arguments import MemoryArguments


def main() -> None:
    """Command line."""
    arguments = tyro.cli(MemoryArguments, description=__doc__)
    from eval.memory.measuring import measure
    from unified.command import command

    with command("eval.memory"):
        report = measure(arguments, lambda so_far: so_far.save(arguments.out))
    print(report.markdown())
    print(f"saved in {arguments.out}/memory.json, memory.md and memory.html")


if __name__ == "__main__":
    main()
