"""`jaxtrain logits`, and the line that it says to type next."""

import shlex
import shutil

from messages import check, refusal
from tiny_run import QUICKSTART, STEPS, sets

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main


def test_a_student_trains_by_the_line_that_is_said_and_is_evaluated_without_the_logits(tiny_run, tmp_path, capsys):
    logits, run = tmp_path / "logits", tmp_path / "run"
    changes = {
        "objective": "@Distill(top_k=4)",
        "model.teacher": f"@jaxtrain.train.teachers.FromRun(path='{tiny_run.folder}')",
        "hooks": f"(@Checkpoint(every_steps={STEPS}),)",
    }
    taught = sets(changes)
    assert main(["logits", QUICKSTART, str(logits), *tiny_run.command[2:], *taught]) == 0
    said, following = capsys.readouterr().out.splitlines()
    tokens = STEPS * 8 * 32
    assert said == f"the 4 likeliest words of {tokens:,} tokens, {tokens * 6 * 4:,} bytes, in {logits}"

    name, *words = shlex.split(following.removeprefix("next: "))
    assert name == "jaxtrain" and main([*words, "--run", str(run)]) == 0
    teacher = load(run).config.model.teacher
    assert teacher.path == str(logits) and teacher.top_k == 4 and len(teacher.fingerprint) == 32

    shutil.rmtree(logits)
    assert main(["eval", str(run), "--batches", "1"]) == 0
    text = refusal(capsys, *words, "--run", tmp_path / "another")
    check(text, f"path='{logits}'", f"jaxtrain logits CONFIG {logits}")
