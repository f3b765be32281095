"""Fixtures that every part of the tests shares."""

import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

# Builders that several tests share (`tiny`, `planted`, ...) are plain modules in this folder.
sys.path.insert(0, str(Path(__file__).parent))

import tiny

torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_suite(tmp_path_factory):
    """A folder of three related checkpoints: GPT-NeoX, 4 blocks, width 32, byte-level BPE. Do not write into it."""
    return tiny.write_suite(tmp_path_factory.mktemp("suite"))
