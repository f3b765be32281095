"""The saved state of an unfinished training run, from which it resumes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from crosstime.base.artifact import read_manifest, sweep, verify, writing
from crosstime.base.errors import InputError

_TENSORS = "state.safetensors"


@dataclass(frozen=True)
class ResumeFolder:
    """A folder with the newest state of a run in step-N, which is written completely or not at all.

    `settings` is everything that the result of the run depends on; a state with other settings is refused. Settings of
    one of several crosscoders are prefixed by "NAME/". A run can resume with fewer crosscoders than it began with.
    """

    folder: Path
    settings: Mapping[str, Any]

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Save the state after `step` steps, then remove older ones.

        Raises:
            OSError: It couldn't be written. The older state is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with writing(self._path(step), settings=self.settings, inputs={}) as draft:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft / _TENSORS)
        for other in self._saved_steps():
            if other != step:
                shutil.rmtree(self._path(other))

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Load the newest step and its tensors; return None if nothing was saved.

        Raises:
            DamagedArtifact: The state is damaged.
            InputError: The run was begun with other settings, or without some of the crosscoders.
        """
        if not self.folder.exists():
            return None
        sweep(self.folder)
        steps = [step for step in self._saved_steps() if read_manifest(self._path(step)) is not None]
        if not steps:
            return None
        newest = self._path(max(steps))
        self._check_settings(verify(newest).settings)
        return max(steps), load_file(newest / _TENSORS)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _saved_steps(self) -> list[int]:
        return [int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*")]

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        crosscoders, saved_crosscoders = ({_crosscoder_of(name) for name in each} for each in (self.settings, saved))
        if added := sorted(crosscoders - saved_crosscoders):
            raise InputError(
                f"the unfinished training in {self.folder} was begun without {', '.join(added)}: finish it first and "
                "train that afterwards, which gives the same weights, or delete the folder to start again"
            )
        changes = [
            f"{name} was {saved.get(name)!r}, now {self.settings.get(name)!r}"
            for name in sorted(saved.keys() | self.settings.keys())
            if _crosscoder_of(name) in crosscoders and saved.get(name) != self.settings.get(name)
        ]
        if changes:
            raise InputError(
                f"the unfinished training in {self.folder} was begun with other settings ({'; '.join(changes)}): "
                "restore them to resume it, or delete the folder to start again"
            )


def _crosscoder_of(setting: str) -> str:
    """Return the name of the crosscoder that a setting belongs to; empty for settings shared by all."""
    return setting.rpartition("/")[0]
