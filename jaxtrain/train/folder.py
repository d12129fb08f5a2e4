"""The run folder: config.gin, metrics.jsonl, samples.txt, tensorboard/, checkpoints/."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.gin"


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    @property
    def is_used(self) -> bool:
        """Whether a run has begun here."""
        return self.config.exists() or self.checkpoints.exists()

    def write_config(self, text: str) -> None:
        """Write the operative configuration, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.config.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(self.config)

    def clear(self) -> None:
        """Remove the run, and nothing in the folder that is not a run's."""
        for name in (CONFIG, "metrics.jsonl", "samples.txt"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "tensorboard", "profile"):
            shutil.rmtree(self.path / name, ignore_errors=True)
