"""Kills each writer at random moments: `python -m tests.fuzz.kills --kills 100`.

A folder that was being written must then be the old one, the new one, or refused; and doing it
again must give the new one. Prints what was counted, and exits with status 1 where a folder passed
for whole and was not, was lost, or could not be written again.

Half of the kills come after a random time, half at a random one of the calls that open, make, move
or remove a file.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from tests.fuzz.writers import Writer, sources, writers

LIMIT = 30.0
"""Seconds that a writer may take."""
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "ctypes.dlsym")


@dataclass
class Count:
    """What became of a writer's kills."""

    kills: int = 0
    cut_off: int = 0
    refused: int = 0
    old: int = 0
    new: int = 0
    faults: list[str] = field(default_factory=list)


def in_child(write: Callable[[], object], *, at: int | None = None, after: float | None = None):
    """Runs it in a process of its own, killed at a file event or after a time.

    Returns:
        Exit status (negative where it was killed), seconds, and file events counted.
    """
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if not child:
        _be_child(write, writer, at)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
    status = _end_of(child, start + LIMIT)
    with os.fdopen(reader) as told:
        events = told.read()
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, time.monotonic() - start, int(events or 0)


def _to_the_end(write: Callable[[], object]):
    """Runs it in a process of its own, again where the fork stood still; returns as `in_child`."""
    code, seconds, events = in_child(write)
    for _ in range(2):
        if seconds < LIMIT:
            break
        code, seconds, events = in_child(write)
    return code, seconds, events


def _end_of(child: int, limit: float) -> int:
    """Waits for a process; kills it after the limit, as a fork of threads may stand still."""
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return status
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)


def _be_child(write: Callable[[], object], told: int, at: int | None) -> None:
    count = 0

    def hook(event: str, _: object) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        if "KILLS_VERBOSE" not in os.environ:
            os.dup2(null, 2)
        sys.addaudithook(hook)
        write()
        code = 0
    except BaseException:
        traceback.print_exc()
    os.write(told, str(count).encode())
    os._exit(code)


def read(writer: Writer, folder: Path) -> str | None:
    """What lies there, None where it is refused; any other exception is a fault."""
    try:
        return writer.read(folder)
    except ValueError:
        return None


def torment(writer: Writer, work: Path, kills: int, rng: random.Random, name: str) -> Count:
    """Kills a writer so many times."""
    count = Count()
    folder = work / "folder" / "out"

    def begin() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir()
        if writer.before is not None:
            writer.before(folder)

    begin()
    old = read(writer, folder)
    code, seconds, events = _to_the_end(lambda: writer.write(folder))
    new = read(writer, folder)
    if code or new is None or new == old:
        count.faults.append("cannot be written even when nobody kills it")
        return count
    for number in tqdm(range(kills), name, leave=False):
        begin()
        if number % 2:
            at, after = rng.randint(1, max(events, 1)), None
        else:
            at, after = None, rng.uniform(0, seconds)
        moment = f"event {at}" if after is None else f"second {after:.3f}"
        code, _, _ = in_child(lambda: writer.write(folder), at=at, after=after)
        count.kills += 1
        count.cut_off += code < 0
        try:
            found = read(writer, folder)
        except Exception as error:
            count.faults.append(f"{moment}: reading it raised {error!r}")
            continue
        if found is None:
            count.refused += 1
            if writer.is_kept:
                count.faults.append(f"{moment}: what was there before is lost")
        elif found == new:
            count.new += 1
        elif found == old:
            count.old += 1
        else:
            count.faults.append(f"{moment}: passes for whole, and is neither old nor new")
        code, _, _ = _to_the_end(lambda: writer.write(folder))
        if code or read(writer, folder) != new:
            count.faults.append(f"{moment}: cannot be written again")
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        if left:
            count.faults.append(f"{moment}: {left} stays beside it")
    return count


def run(kills: int, seed: int, names: list[str] | None = None, slow: bool = True) -> list[str]:
    """Torments writers; returns the faults and prints a table."""
    torch.set_num_threads(1)  # a fork inherits no other thread
    # A child that is killed while it draws its bar would keep a lock that processes share.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    rng = random.Random(seed)
    faults = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        print(f"{'writer':26s} kills  cut off  refused  old  new  faults")
        found = writers(work)
        if slow:  # their readers leave threads behind, which a fork may not survive
            found |= sources(work)
        for name, writer in found.items():
            if (names and name not in names) or (writer.is_slow and not slow):
                continue
            c = torment(writer, work, kills, rng, name)
            print(
                f"{name:26s} {c.kills:5d} {c.cut_off:8d} {c.refused:8d} {c.old:4d} {c.new:4d} "
                f"{len(c.faults):7d}",
                flush=True,
            )
            faults += [f"{name}: {fault}" for fault in c.faults]
    return faults


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", nargs="*", help="names of some; all if not given")
    parser.add_argument("--quick", action="store_true", help="without those that take seconds")
    arguments = parser.parse_args()
    faults = run(arguments.kills, arguments.seed, arguments.writers, not arguments.quick)
    print("\n".join(faults) or "no fault")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
