"""Crosscoders in other projects' layouts, made on the spot, and what their definitions compute.

Each `forward` is the format's own, written from its published definition: raw activations [B, M, D] to the codes that
each checkpoint decodes, [B, M, F], and reconstructions [B, M, D].
"""

from __future__ import annotations

import torch

M, D, F = 3, 5, 24


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def activations(rows=64):
    """Rows whose checkpoints differ in mean and size, as activations do."""
    return randn(rows, M, D, seed=9) * torch.tensor([0.5, 2.0, 8.0])[:, None] + randn(M, D, seed=8) * 3


def paper_weights(m=M):
    return {
        "W_enc": randn(m, D, F, seed=1) / 3,
        "b_enc": randn(F, seed=2) / 2,
        "W_dec": randn(F, m, D, seed=3) / 3,
        "b_dec": randn(m, D, seed=4),
    }


def paper_forward(weights, scale, x):
    """arXiv 2509.05291's code, on scaled activations; a threshold is one of code times decoder norms."""
    scale = torch.tensor(scale)[:, None]
    f = torch.relu(torch.einsum("bmd,mdf->bf", x * scale, weights["W_enc"]) + weights["b_enc"])
    if "threshold" in weights:
        f = f * (f * weights["W_dec"].norm(dim=2).sum(1) > weights["threshold"])
    return _everywhere(f), (torch.einsum("bf,fmd->bmd", f, weights["W_dec"]) + weights["b_dec"]) / scale


def learning_weights(normalizer=None, threshold=None, normalization=1):
    """dictionary_learning's state dict. normalizer: "checkpoint", "all" (one size for all) or "neuron"."""
    state = {
        "encoder.weight": randn(M, D, F, seed=1) / 2,
        "encoder.bias": randn(F, seed=2) / 2,
        "decoder.weight": randn(M, F, D, seed=3) / 2 * torch.tensor([1.0, 0.5, 0.1])[:, None, None],
        "decoder.bias": randn(M, D, seed=4) / 4,
        "code_normalization_id": torch.tensor(normalization),
    }
    mean, std = randn(M, D, seed=8) * 3, rand(M, D, seed=5) * torch.tensor([0.5, 2.0, 8.0])[:, None] + 0.1
    if normalizer is None:
        state |= {"activation_mean": torch.full((M, D), torch.nan), "activation_std": torch.full((M, D), torch.nan)}
        state |= {"activation_global_scale": torch.ones(M), "target_rms": torch.tensor(1.0)}
    else:
        state |= {"activation_mean": mean, "activation_std": std}
    if normalizer == "checkpoint":
        state["activation_global_scale"] = 1.5 / (std.square().sum(1) + 1e-8).sqrt()
    elif normalizer == "all":
        state["activation_global_scale"] = 1.5 / (std.square().sum() + 1e-8).sqrt()
    if threshold is not None:
        state |= {"threshold": torch.tensor(threshold), "k": torch.tensor(6, dtype=torch.int)}
    return state


def learning_forward(state, x, alphas=(1.0, 0.1)):
    """dictionary_learning: CrossCoder and, where there is a threshold, BatchTopKCrossCoder with `use_threshold`."""
    mean, std, size = state["activation_mean"], state["activation_std"], state.get("activation_global_scale")
    normal = not bool(mean.isnan().any())
    if normal and size is not None:
        x = (x - mean) * size.reshape(-1, 1)
    elif normal:
        x = (x - mean) / (std + 1e-8)
    f = _everywhere(torch.relu(torch.einsum("bmd,mdf->bf", x, state["encoder.weight"]) + state["encoder.bias"]))
    if "threshold" in state:
        norms = state["decoder.weight"].norm(dim=2)
        joint = state["decoder.weight"].norm(dim=(0, 2))
        weight = {
            1: norms.sum(0),
            2: joint,
            3: alphas[0] * joint + alphas[1] * norms.sum(0),
            4: torch.ones(F),
            5: norms,
        }[int(state["code_normalization_id"])]
        f = f * (f * weight > state["threshold"].reshape(-1, 1))
    x_hat = torch.einsum("bmf,mfd->bmd", f, state["decoder.weight"]) + state["decoder.bias"]
    if normal and size is not None:
        x_hat = x_hat / (size.reshape(-1, 1) + 1e-8) + mean
    elif normal:
        x_hat = x_hat * (std + 1e-8) + mean
    return f, x_hat


HEADS = ("step1", "step2", "step3")


def llama_weights(act_fn="jumprelu"):
    """Llamascopium's tensors, with the norms that its dataset-wise normalisation keeps."""
    state = {
        "W_E": randn(M, D, F, seed=1) / 3,
        "b_E": randn(M, F, seed=2) / 3,
        "W_D": randn(M, F, D, seed=3) / 3 * torch.tensor([1.0, 0.5, 0.1])[:, None, None],
        "b_D": randn(M, D, seed=4),
    }
    if act_fn == "jumprelu":
        state["activation_function.log_jumprelu_threshold"] = (rand(F, seed=5) / 2).log()
    norms = torch.tensor([1.7, 5.0, 19.0])
    return state | {f"dataset_average_activation_norm.{head}": norms[n] for n, head in enumerate(HEADS)}


def llama_forward(state, x, normalised=True):
    """Llamascopium: every head gates the sum of all heads' pre-activations by its own decoder norms."""
    norms = torch.stack([state[f"dataset_average_activation_norm.{head}"] for head in HEADS])
    scale = (D**0.5 / norms)[:, None] if normalised else torch.ones(M, 1)
    pre = (torch.einsum("bmd,mdf->bmf", x * scale, state["W_E"]) + state["b_E"]).sum(1, keepdim=True)
    d_norms = state["W_D"].norm(dim=2)
    scaled = pre * d_norms
    log_threshold = state.get("activation_function.log_jumprelu_threshold")
    theta = torch.zeros(F) if log_threshold is None else log_threshold.exp()
    f = scaled * (scaled > theta) / d_norms
    return f, (torch.einsum("bmf,mfd->bmd", f, state["W_D"]) + state["b_D"]) / scale


def _everywhere(f):
    return f[:, None].expand(-1, M, -1)
