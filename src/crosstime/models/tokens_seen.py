"""Tokens seen in pretraining, from the names by which public suites call their revisions."""

from __future__ import annotations

import re
from dataclasses import dataclass

MILLION, BILLION, TRILLION = 10**6, 10**9, 10**12


@dataclass(frozen=True)
class _Rule:
    """Tokens = the number in the revision's name times `factor`, for repositories whose name matches."""

    repo: str
    revision: str
    factor: int


_RULES = (
    # Pythia: 1024 sequences of 2048 tokens a step (arXiv 2304.01373, table 1), in all sizes.
    _Rule(r"\bpythia-", r"step(\d+)", 2_097_152),
    # BLOOM's intermediate checkpoints: the figure of Crosscoding Through Time (arXiv 2509.05291), averaged over the
    # ramp of the batch size.
    _Rule(r"\bbloom\b", r"global_step(\d+)", 550_000),
    # OLMo names its tokens itself: "step1000-tokens2B", "stage1-step1000-tokens5B". In later stages ("stage2-...") the
    # label counts from the stage's beginning, and which checkpoint that was the name does not say.
    _Rule("", r"(?:stage1-)?step\d+-tokens(\d+)M", MILLION),
    _Rule("", r"(?:stage1-)?step\d+-tokens(\d+)B", BILLION),
    _Rule("", r"(?:stage1-)?step\d+-tokens(\d+)T", TRILLION),
)

_FINISHED = (
    # Of all sizes, 143,000 steps (arXiv 2304.01373).
    (r"(EleutherAI/)?pythia-[\d.]+[mb](-deduped)?", 143_000 * 2_097_152),
    # 341B and 3048B are the figures of Crosscoding Through Time (arXiv 2509.05291). OLMo's leaves out the cool-down.
    (r"(bigscience/)?bloom-1b1(-intermediate)?", 341 * BILLION),
    (r"(allenai/)?OLMo-1B-0724-hf", 3048 * BILLION),
)
"""What `main` has seen, by the whole name of the repository: a fine-tuned descendant has a name like it."""


def tokens_seen(repo_or_name: str, revision: str) -> int | None:
    """Tokens that a checkpoint had seen, or None where no rule is known.

    Args:
        repo_or_name: a hub repository ("EleutherAI/pythia-1b") or a folder's name.
        revision: its revision ("step512", "main"), or the name of the checkpoint's folder in it.
    """
    if revision == "main":
        finished = (tokens for repo, tokens in _FINISHED if re.fullmatch(repo, repo_or_name, re.IGNORECASE))
        return next(finished, None)
    for rule in _RULES:
        match = re.fullmatch(rule.revision, revision)
        if match and re.search(rule.repo, repo_or_name, re.IGNORECASE):
            return int(match[1]) * rule.factor
    return None
