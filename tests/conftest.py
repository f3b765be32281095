"""Fixtures that every part of the tests shares."""

import torch

torch.set_num_threads(2)
