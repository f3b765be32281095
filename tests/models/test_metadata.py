"""Tokens seen, from revisions' names."""

import pytest

from crosstime.models.metadata import tokens_seen


@pytest.mark.parametrize(
    ("repo", "revision", "tokens"),
    [
        ("EleutherAI/pythia-1b", "step0", 0),
        ("EleutherAI/pythia-1b", "step512", 512 * 2_097_152),
        ("EleutherAI/pythia-70m-deduped", "step143000", 299_892_736_000),
        ("EleutherAI/pythia-1b", "main", 299_892_736_000),
        ("pythia-6.9b-deduped", "main", 299_892_736_000),
        ("someone/pythia-1b-chat", "main", None),
        ("someone/pythia-1b", "main", None),
        ("bigscience/bloom-1b1-intermediate", "main", 341_000_000_000),
        ("bigscience/bloom-1b1", "main", 341_000_000_000),
        ("bigscience/bloom-560m", "main", None),
        ("allenai/OLMo-1B-0724-hf", "main", 3_048_000_000_000),
        ("allenai/OLMo-1B-hf", "main", None),
        ("allenai/OLMo-2-0425-1B", "stage2-ingredient1-step1000-tokens3B", None),
        ("allenai/OLMo-2-0425-1B", "stage2-step1000-tokens3B", None),
        ("allenai/OLMo-1B-0724-hf", "step1000-tokens2B", 2_000_000_000),
        ("allenai/OLMo-2-0425-1B", "stage1-step10000-tokens21B", 21_000_000_000),
        ("allenai/OLMo-1B-hf", "step738020-tokens3094B", 3_094_000_000_000),
        ("bigscience/bloom-1b1-intermediate", "global_step1000", 550_000_000),
        ("bigscience/bloom-560m-intermediate", "global_step100000", 55_000_000_000),
        ("bigscience/bloom-1b1-intermediate", "step1000", None),
        ("someone/else", "step512", None),
        ("someone/else", "main", None),
    ],
)
def test_rules(repo, revision, tokens):
    assert tokens_seen(repo, revision) == tokens
