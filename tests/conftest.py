"""What every test shares: threads, seeds, reproducible hypothesis, GPU tests that skip."""

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

from unified.media.codec import FrameCodec

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# With -n, several processes share the processors, and so do the commands that tests start.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
TINY_CODEC = {
    "autoencoder": {
        "_class_name": "AutoencoderTiny",
        "latent_channels": 4,
        "encoder_block_out_channels": [8, 8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8, 8],
        "num_encoder_blocks": [0, 0, 0, 1],
        "num_decoder_blocks": [1, 0, 0, 0],
    }
}

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed_global_generators():
    """Library code takes explicit generators; this pins what third parties draw globally."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_codec() -> FrameCodec:
    """An untrained codec of 4 channels and 8x downsampling."""
    torch.manual_seed(0)
    return FrameCodec.from_config(TINY_CODEC)


@pytest.fixture(scope="session")
def other_codec() -> FrameCodec:
    """The same with other weights."""
    torch.manual_seed(1)
    return FrameCodec.from_config(TINY_CODEC)
