"""The bigram model's loss, kept in a run's metrics.jsonl as a record of step 0, for `jaxtrain plot` to draw."""

import json
from collections.abc import Sequence

from jaxtrain.train.folder import RunFolder, write_whole

KEY = "bigram_loss"


def keep(folder: RunFolder, loss: float | None) -> None:
    """Write the loss as the first record of a new run. A resumed run has it already."""
    if loss is not None and not folder.metrics.exists():
        write_whole(folder.metrics, json.dumps({"step": 0, KEY: loss}) + "\n")


def kept(records: Sequence[dict]) -> float | None:
    return next((record[KEY] for record in records if KEY in record), None)
