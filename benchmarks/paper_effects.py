"""Indirect effects by the code of arXiv 2509.05291 itself, on our models, out of a checkout that the user supplies.

It runs on nnsight 0.4.6, which must be installed, as must `einops`; what else they import and an attribution does not
use is replaced by stand-ins. What runs is its `get_nodes`: prompts and answers as text, tokenised anew, in batches of
four in the order of the task, padded on the left; no threshold. It turns on autograd's search for anomalies, so that is
on while it runs. Of its code nothing is changed but the name of the device.

Its ten points all read the metric of the first, and nothing else (docs/parity.md, "integration"): its numbers are those
of our method "released", at the cost of ten points. Where nnsight is repaired, so that each point reads the rows of its
own and keeps its mask of the padding, they are those of our method "paper".
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import stand_ins
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from crosstime.crosscoder.crosscoder import Crosscoder
from crosstime.tasks.prompts import Prompts

BATCH = 4
NEEDED = ("nnsight", "einops")
UNUSED = {"PIL", "accelerate", "diffusers", "msgspec", "socketio", "toml"}


class Table(dict[str, list[str]]):
    """A task as the code reads it: as long as its columns, and a slice of it is one of each column."""

    def __len__(self) -> int:
        return len(self["clean_prefix"])

    def __getitem__(self, key: Any) -> Any:
        return (
            {name: super(Table, self).__getitem__(name)[key] for name in self}
            if isinstance(key, slice)
            else super().__getitem__(key)
        )


class PaperEffects:
    """The effects of a crosscoder's features on a task, by the paper's code.

    Args:
        folder: the checkout.
        models: M checkpoints, GPT-NeoX; nnsight puts hooks into them.
        crosscoder: F features over them, without scale factors.
        prompts: the task.
    """

    @classmethod
    def where_it_can_run(
        cls, folder: Path, models: Sequence[PreTrainedModel], crosscoder: Crosscoder, prompts: Prompts
    ) -> PaperEffects | None:
        """None where something that it needs is not installed, which is told."""
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        try:
            if not missing:
                return cls(folder, models, crosscoder, prompts)
            why = f"it needs {' and '.join(missing)}"
        except ImportError as error:
            why = str(error)
        print(f"{folder} is left out: {why}", file=sys.stderr)
        return None

    def __init__(
        self, folder: Path, models: Sequence[PreTrainedModel], crosscoder: Crosscoder, prompts: Prompts
    ) -> None:
        self.device = str(crosscoder.b_enc.device)
        self.code = _load(folder, self.device)
        self.nnsight = importlib.import_module("nnsight")
        tokenizer = _tokenizer(models[0].config.vocab_size)
        self.models = [self.nnsight.LanguageModel(model, tokenizer=tokenizer) for model in models]
        self.layers = [
            self.code.Submodule(f"m{m}", model.gpt_neox.layers[crosscoder.config.layer])
            for m, model in enumerate(self.models)
        ]
        self.crosscoder = _theirs(crosscoder, self.device)
        self.table = Table(
            clean_prefix=[_text(tokens) for tokens in prompts.tokens],
            clean_answer=[_text([token]) for token in prompts.right.tolist()],
            patch_answer=[_text([token]) for token in prompts.wrong.tolist()],
        )

    def run(self) -> np.ndarray:
        """[M, F] indirect effects."""
        quiet = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
            torch.autograd.set_detect_anomaly(True),
        ):
            _, found = self.code.get_nodes(
                self.table,
                "random",
                self.models,
                self.layers,
                self.crosscoder,
                max_examples=len(self.table),
                batch_size=BATCH,
                base_dir=folder,
                device=self.device,
            )
        return np.stack([found[layer.name].cpu().numpy() for layer in self.layers])

    def run_repaired(self) -> np.ndarray:
        """[M, F] indirect effects, where each of the ten points counts."""
        util, model = self.nnsight.util, self.nnsight.LanguageModel
        with (
            patch.object(util, "apply", _into_outputs(util.apply)),
            patch.object(model, "_batch", _masked(model._batch)),
        ):
            return self.run()


def _load(folder: Path, device: str) -> ModuleType:
    """attribution.py of the checkout, on another device than the one it names."""
    stand_ins.UNUSED.update(UNUSED)
    stand_ins.install()
    path = folder.resolve() / "attribution.py"
    spec = importlib.util.spec_from_file_location("attribution", path)
    assert spec is not None
    code = sys.modules["attribution"] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_text(encoding="utf-8").replace('"cuda:0"', repr(device)), path, "exec"), vars(code))
    finally:
        sys.path.pop(0)
        torch.autograd.set_detect_anomaly(False)
    return code


def _theirs(crosscoder: Crosscoder, device: str) -> Any:
    """Their crosscoder with the same weights."""
    m, width, features = crosscoder.W_enc.shape
    cfg = {"d_in": width, "dict_size": features, "n_models": m, "enc_dtype": "fp32", "seed": 0, "dec_init_norm": 0.08}
    made = sys.modules["crosscoder"].CrossCoder({**cfg, "device": device})
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(made, name).copy_(getattr(crosscoder, name))
    return made


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One for which token 5 is the word "t5"; no word begins with that of the padding."""
    words = Tokenizer(WordLevel({_text([token]): token for token in range(vocabulary)}, unk_token=_text([0])))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=_text([0]), padding_side="left")


def _text(tokens: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _into_outputs(apply: Any) -> Any:
    """nnsight's `apply`, by which it hands each point its rows, for the output of a model too, a kind of dictionary."""

    def repaired(data: Any, fn: Any, cls: Any, inplace: bool = False) -> Any:
        if isinstance(data, ModelOutput):
            return type(data)(**{key: repaired(value, fn, cls) for key, value in data.items()})
        return apply(data, fn, cls, inplace)

    return repaired


def _masked(batch: Any) -> Any:
    """nnsight's `_batch`, which joins the points, with the mask of each: it keeps the first one's only."""

    def repaired(model: Any, before: Any, new: Any, labels: Any = None) -> Any:
        joined = batch(model, before, new, labels)
        if before is not None:
            joined[0][0]["attention_mask"] = torch.cat([before[0][0]["attention_mask"], new["attention_mask"]])
        return joined

    return repaired
