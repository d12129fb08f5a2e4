"""The run folder: config.gin, metrics.jsonl, samples.txt, tensorboard/, checkpoints/."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.gin"


class SaveError(RuntimeError):
    """The run folder could not be written, the disk being full perhaps; what was saved before is unharmed."""

    def __init__(self, what: str, cause: BaseException):
        super().__init__(
            f"{what}: {reason(cause)}. What was saved before is unharmed; "
            f"make room, or move the run to a larger disk, and the same command goes on from there"
        )


def reason(error: BaseException) -> str:
    """Return the operating system's words for why a file could not be written, where they can be found."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in the text of errors from Orbax's own writer
    return os.strerror(int(code[1])) if code else " ".join(str(error).split()) or type(error).__name__


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
    def profile(self) -> Path:
        return self.path / "profile"

    def add_sample(self, step: int, text: str) -> None:
        try:
            with self.samples.open("a", encoding="utf-8") as file:
                file.write(f"--- step {step} ---\n{text}\n")
        except OSError as error:
            raise SaveError(f"a sample could not be written to {self.samples}", error) from error

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
        for name in (CONFIG, "metrics.jsonl", "samples.txt", "wandb_id.txt"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "tensorboard", "profile"):
            shutil.rmtree(self.path / name, ignore_errors=True)
