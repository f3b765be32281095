"""The state of an unfinished training run: what must be kept so that it goes on as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosstime.base.artifact import read_manifest, sweep, verify, writing
from crosstime.base.errors import InputError

TENSORS = "state.safetensors"


@dataclass(frozen=True)
class ResumeFolder:
    """Holds the newest state of a run, in a folder step-N that is written whole or not at all.

    `settings` is everything that the run's course depends on; a state of other settings is refused, not used. What only
    one crosscoder of several depends on stands under "NAME/"; the state of more crosscoders serves fewer.
    """

    folder: Path
    settings: Mapping[str, Any]

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the state after `step` steps, then remove the older ones.

        Raises:
            OSError: it could not be written; the older state is still there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with writing(self._at(step), settings=self.settings, inputs={}) as draft:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft / TENSORS)
        for other in self._steps():
            if other != step:
                shutil.rmtree(self._at(other))

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest state and its step, or None where none was saved.

        Raises:
            InputError: the state is damaged, or was saved by a run with other settings or without some of the
                crosscoders; these are named.
        """
        if not self.folder.exists():
            return None
        sweep(self.folder)
        steps = [step for step in self._steps() if read_manifest(self._at(step)) is not None]
        if not steps:
            return None
        newest = self._at(max(steps))
        self._check_settings(verify(newest).settings)
        return max(steps), load_file(newest / TENSORS)

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        return [int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*")]

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        ours, theirs = ({_whose(name) for name in settings} for settings in (self.settings, saved))
        if new := sorted(ours - theirs):
            raise InputError(
                f"the unfinished training in {self.folder} was begun without {', '.join(new)}: leave that out until it "
                "is finished and train it then, to the same weights, or delete that folder to start all anew"
            )
        changed = [
            f"{name} was {saved.get(name)!r} and is {self.settings.get(name)!r}"
            for name in sorted(saved.keys() | self.settings.keys())
            if _whose(name) in ours and saved.get(name) != self.settings.get(name)
        ]
        if changed:
            raise InputError(
                f"the unfinished training in {self.folder} was begun with other settings ({'; '.join(changed)}): "
                "set them back to go on with it, or delete that folder to start anew"
            )


def _whose(setting: str) -> str:
    """The crosscoder that a setting is of; empty where all have it."""
    return setting.rpartition("/")[0]


def optimiser_tensors(optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's moments and step counts, under the names of their parameters."""
    return {
        f"adam.{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimiser.state[parameter].items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Put Adam's moments and step counts back."""
    for name, parameter in parameters.items():
        prefix = f"adam.{name}."
        optimiser.state[parameter] = {
            key.removeprefix(prefix): value.to(parameter.device)
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
