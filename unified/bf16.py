"""Whether a processor computes in bfloat16, or only pretends to."""

import warnings
from pathlib import Path

CPU_FILE = Path("/proc/cpuinfo")
FEATURES = {"avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"}
"""Names, on x86 and on Arm, of the instructions that compute in bfloat16."""


def has_bf16(cpuinfo: str) -> bool:
    """Whether the text of `/proc/cpuinfo` names instructions for bfloat16."""
    lines = (line.partition(":") for line in cpuinfo.lower().splitlines())
    found = (
        set(words.split()) for name, _, words in lines if name.strip() in ("flags", "features")
    )
    return any(features & FEATURES for features in found)


def warn_of_emulated_bf16(device: str) -> None:
    """Warns where `--bf16` makes training slower: on a processor that emulates it."""
    if device == "cpu" and CPU_FILE.exists() and not has_bf16(CPU_FILE.read_text()):
        warnings.warn(
            "--bf16: this processor has no instructions for bfloat16 (AVX512_BF16 or AMX), so it "
            "is emulated, which can take ten times as long; leave --bf16 out",
            stacklevel=2,
        )
