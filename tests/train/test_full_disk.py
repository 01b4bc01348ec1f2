"""A disk that takes no more ends every writer in one line, and what was there stays."""

import json
import subprocess
import sys
from pathlib import Path

from data.recording import record_babyai
from tests.conftest import TINY_CODEC
from unified.media.codec import FrameCodec

ROOT = Path(__file__).parents[2]
# A file may have 6,000 bytes: writing more fails as it does on a full disk, whoever runs this.
SCRIPT = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from data import prepare, record
from train import codec
from unified.command import command
from unified.media.codec import FrameCodec
import tyro

work = Path(sys.argv[1])
found = FrameCodec.from_config(work / "config.json")
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
steps = {
    "record": lambda: record.record(
        record.RecordArguments(env="tests.data.dot:Dot-v0", out=work / "dots", episodes=400)
    ),
    "latents": lambda: prepare.latents(work / "babyai", work / "codec"),
    "codec": lambda: codec.main(
        codec.Options(
            data=work / "babyai", out=work / "trained", config=work / "config.json", steps=2,
            batch=0, real_batch=2, device="cpu",
        )
    ),
    "save": lambda: found.save_pretrained(work / "codec"),
}
for name, step in steps.items():
    try:
        with command(name):
            step()
    except SystemExit as stop:
        print(name, "ended with", stop.code, flush=True)
"""


def test_a_full_disk_ends_every_writer_in_one_line_and_loses_nothing(tiny_codec, tmp_path):
    record_babyai(["GoToRedBall"], episodes=2, seed=11, out=tmp_path / "babyai")
    tiny_codec.save_pretrained(tmp_path / "codec")
    (tmp_path / "config.json").write_text(json.dumps(TINY_CODEC))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = ["record", "latents", "codec", "save"]
    assert [line for line in run.stdout.splitlines() if "ended with" in line] == [
        f"{name} ended with 2" for name in names
    ], run.stderr[-3000:]
    for name in names:
        lines = [line for line in run.stderr.splitlines() if line.startswith(f"{name}: ")]
        told = [line for line in lines if line.endswith("free some space, and run it again")]
        assert len(told) == 1, lines
    assert "Traceback" not in run.stderr
    assert FrameCodec.from_pretrained(tmp_path / "codec").fingerprint == tiny_codec.fingerprint
    left = [p for p in tmp_path.rglob(".*") if p.name.endswith((".part", ".old"))]
    assert left == []
