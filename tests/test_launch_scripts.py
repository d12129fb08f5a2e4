"""The scripts that start runs, as docs/cluster.md calls them: here for real, on clusters up to their own commands."""

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from devices import xla_flags
from documents import blocks, files, text
from patience import PATIENCE_SECONDS

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main, parser
from jaxtrain.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
LOCAL = (sys.executable, SCRIPTS / "launch_local.py")
TINY = {
    "model.d_model": 8,
    "model.repeats": 1,
    "model.pattern[0].mixer.head_dim": 2,
    "model.pattern[0].mlp.hidden": 8,
    "optimizer.learning_rate.warmup_steps": 1,
    "phases[0].steps": 2,
    "phases[0].sequence_length": 8,
    "hooks": "(@Checkpoint(every_steps=2),)",
}
# A process that says who it is, then waits to be told to stop; or the second of two fails, once the first one waits.
PROCESS = """\
import os, signal, sys, time
index, stopped = int(os.environ["JAX_PROCESS_ID"]), []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: stopped.append(signal.Signals(number).name))
def say(line):  # in one write, since two processes share the output; `print` makes several if it does not buffer
    os.write(1, f"{line}\\n".encode())
say(f"process {index} of {os.environ['JAX_NUM_PROCESSES']} {os.environ['JAX_COORDINATOR_ADDRESS']}")
if len(sys.argv) > 1:
    if index == 0:
        open(sys.argv[1], "w").close()
    else:
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.05)
        sys.exit(7)
while not stopped:
    time.sleep(0.05)
say(f"saved after {stopped}")
"""


def environment(**changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices=1)} | changes


@pytest.fixture(autouse=True)
def hang_up():
    """Let SIGHUP do what it does: under nohup it is ignored, and what is started would inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def launch(*command, **options):
    options = {"env": environment(), "stdin": subprocess.DEVNULL, "text": True} | options
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0, **options
    )


def finish(process):
    """Wait for a script and return its exit code and its output lines; leave nothing running whatever happens."""
    try:
        out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.send_signal(signal.SIGTERM)
    return process.returncode, out.splitlines(), errors.splitlines()


def fake_command(folder, name, text):
    """Put a command on a path of its own."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)
    return {"PATH": f"{file.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("launch_*") if path.suffix != ".py"))
def test_script_is_valid_shell(script):
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)


SBATCH = """\
while [[ $1 == --* ]]; do shift; done
script=$1; shift
SLURM_SUBMIT_DIR=$PWD exec bash "$script" "$@"
"""


def test_the_commands_of_the_page_are_run_as_printed(tmp_path, monkeypatch, capfd):
    """Two processes train, and one goes on. Worth two starts: they are what the page and launch_local.py promise."""
    page, project = text("docs/cluster.md"), Path(sys.executable).parents[1]
    for name, target in (("scripts", SCRIPTS), (".venv", project)):
        (tmp_path / name).symlink_to(target)
    for name, content in files(page).items():
        (tmp_path / name).write_text(content)
    for name, body in (("sbatch", SBATCH), ("srun", 'echo srun "$@" >> calls'), ("gcloud", 'echo "$@" >> calls')):
        path = fake_command(tmp_path, name, body)["PATH"]
    settings = environment(PATH=f"{project}/bin:{path}", JAXTRAIN_CACHE=str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTRAIN_CACHE", settings["JAXTRAIN_CACHE"])
    said = []
    for block in blocks(page):
        for line in block.lines if not block.mark else ():
            words = shlex.split(line, comments=True)
            if words[0] == "jaxtrain":
                assert main(words[1:]) == 0, capfd.readouterr().err
            else:
                code, out, errors = finish(launch("bash", "-ec", line, env=settings))
                assert code == 0, errors
                said += out

    assert any("on 2 cpu" in line for line in said)
    assert sum("the run is in" in line for line in said) == 1, "the first process speaks for all"
    assert [record["step"] for record in read_metrics(Path("runs/rehearsal/metrics.jsonl"))] == [*range(1, 9)]
    assert load(Path("runs/rehearsal")).config.phases[0].steps == 8
    assert Path("runs/rehearsal/checkpoints/8/manifest.json").is_file()
    [_] = Path("runs/profiled/profile").rglob("*.trace.json.gz")

    srun, *gcloud = Path("calls").read_text().splitlines()
    called = shlex.split(srun[srun.index(" train ") :])
    assert parser().parse_args(called).config == "configs/quickstart.gin"
    assert [call.split()[3] for call in gcloud if call.startswith("compute")] == ["scp", "ssh", "ssh", "ssh"]
    assert "jaxtrain train configs/quickstart.gin --run /mnt/shared/run" in "".join(gcloud)
    assert "kill -TERM" in gcloud[-1]


def test_the_page_names_every_variable_of_the_environment_that_is_read():
    page = text("docs/cluster.md").partition("## Variables of the environment")[2]
    read = [path.read_text() for path in (ROOT / "jaxtrain").rglob("*.py")]
    names = set(
        re.findall(r'"((?:JAX|JAXTRAIN|SLURM|TPU|XLA|GLIBC|WANDB|MLFLOW|HF|TQDM|ALLOW)_[A-Z_]+)"', "".join(read))
    )
    names |= set(re.findall(r"\$\{([A-Z]+)\b", "".join(path.read_text() for path in SCRIPTS.glob("launch_*"))))
    assert "JAXTRAIN_CACHE" in names and "ZONE" in names
    assert names - set(re.findall(r"`([A-Z_]+)`", page)) == set()


def test_local_processes_train_each_run_of_a_sweep(tmp_path):
    """A run that they cannot share out is refused to all of them, and the next one is trained all the same."""
    (tmp_path / "a.txt").write_text("some text to learn from\n" * 40)
    changes = TINY | {"data.source": f"@TextFiles(glob='{tmp_path}/*.txt')"}
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    sweep = [sys.executable, "-m", "jaxtrain.cli.main", "sweep", ROOT / "configs" / "quickstart.gin"]
    grid = ["--folder", tmp_path, "--grid", "phases[0].batch_size=3,2", "--grid", "seed=0,1"]  # one program for both
    code, out, errors = finish(launch(*LOCAL, 2, *sweep, *sets, *grid))
    assert code == 2, errors
    assert sum("phases[0].batch_size=3 is not divisible by 2" in line for line in errors) == 2 * 2
    assert sum("on 2 cpu" in line for line in out) == 2, "the first process speaks for all"
    for seed in (0, 1):
        run = tmp_path / f"batch_size=2,seed={seed}"
        assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == [1, 2]
        assert load(run).config.seed == seed
        assert (run / "checkpoints" / "2" / "manifest.json").is_file()
    with (tmp_path / "results.csv").open() as file:
        assert [row["progress"] for row in csv.DictReader(file)] == ["not begun"] * 2 + ["finished"] * 2


def test_failure_of_one_local_process_stops_the_others_and_is_passed_on(tmp_path):
    process = launch(*LOCAL, 2, sys.executable, "-c", PROCESS, tmp_path / "waiting")
    code, out, errors = finish(process)
    assert code == 7
    assert errors == ["launch_local: process 1 ended with exit code 7; the others are told to stop"]
    assert "saved after ['SIGTERM']" in out
    assert any("[process 1] process 1 of 2 127.0.0.1:" in line for line in out), out


def test_death_of_one_local_process_is_said_with_what_killed_it():
    dies = "import os, signal; os.environ['JAX_PROCESS_ID'] == '1' and os.kill(os.getpid(), signal.SIGKILL)"
    code, _, errors = finish(launch(*LOCAL, 2, sys.executable, "-c", dies))
    assert code == 128 + signal.SIGKILL
    assert errors == ["launch_local: process 1 was killed by signal 9 (Killed); the others are told to stop"]


def test_local_processes_end_although_nobody_reads_what_they_say():
    says_much = "for number in range(20000): print('a line of some length', number)"
    process = subprocess.run(
        ["bash", "-c", f"'{LOCAL[0]}' '{LOCAL[1]}' 2 '{LOCAL[0]}' -c \"{says_much}\" 2>/dev/null | head -1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.stdout.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_reaches_every_local_process_once(number):
    process = launch(*LOCAL, 2, sys.executable, "-c", PROCESS)
    begun = [process.stdout.readline(), process.stdout.readline()]
    assert len({line.split()[-1] for line in begun}) == 1, "one coordinator"
    process.send_signal(number)
    code, out, _ = finish(process)
    assert code == 0
    assert sorted(out) == [f"[process 1] saved after ['{number.name}']", f"saved after ['{number.name}']"]


def test_local_launch_without_a_command_explains_itself():
    code, _, errors = finish(launch(*LOCAL, 0, "true"))
    assert code == 2 and "give a number of processes, at least 1, and a command" in errors[-1]


def test_slurm_starts_one_training_a_task(tmp_path):
    path = fake_command(tmp_path, "srun", 'printf "%s\\n" "$@"')
    settings = environment(**path, JAXTRAIN="/bin/true", SLURM_CPUS_PER_TASK="4")
    process = launch("bash", SCRIPTS / "launch_slurm.sbatch", "a b.gin", "--run", "run", env=settings)
    code, out, errors = finish(process)
    assert code == 0, errors
    assert out[-5:] == ["/bin/true", "train", "a b.gin", "--run", "run"]
    assert "--cpus-per-task=4" in out and "--kill-on-bad-exit=1" in out


def test_slurm_says_what_is_missing(tmp_path):
    process = launch("bash", SCRIPTS / "launch_slurm.sbatch", "x.gin", env=environment(SLURM_SUBMIT_DIR=str(tmp_path)))
    code, _, [error] = finish(process)
    assert code == 2 and error.startswith(f"{tmp_path}/.venv/bin/jaxtrain is not there: ")


GCLOUD = """\
echo "$@" >> "$HOME/calls"
cd "$HOME"
for argument; do [[ $argument == --command=* ]] && exec bash -c "${argument#--command=}"; done
cp "$5" "$HOME/${6#*:}"
"""


def test_every_tpu_host_gets_the_checkout_and_runs_the_command(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    fake_command(tmp_path, "python3", "true")  # stands for the installation
    settings = environment(**fake_command(tmp_path, "gcloud", GCLOUD), HOME=str(home), ZONE="zone-b")
    command = ["bash", "-c", "echo 'two  words' $PWD; exit 5"]
    code, out, errors = finish(launch(SCRIPTS / "launch_tpu_pod.sh", "pod", *command, env=settings))
    assert code == 5, errors
    assert out == [f"two  words {home}/jaxtrain"]
    assert (home / "jaxtrain" / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()
    calls = [line for line in (home / "calls").read_text().splitlines() if line.startswith("compute")]
    assert [call.split()[3] for call in calls] == ["scp", "ssh", "ssh"]
    assert all("--worker=all --zone=zone-b" in call for call in calls)


def test_tpu_hosts_can_be_told_to_stop(tmp_path):
    settings = environment(**fake_command(tmp_path, "gcloud", GCLOUD), HOME=str(tmp_path), STOP="1")
    running = subprocess.Popen(["sleep", "300"], start_new_session=True)
    (tmp_path / "jaxtrain.pid").write_text(f"{running.pid}\n")
    try:
        code, _, errors = finish(launch(SCRIPTS / "launch_tpu_pod.sh", "pod", env=settings))
        assert code == 0, errors
        assert running.wait(timeout=PATIENCE_SECONDS) == -signal.SIGTERM
    finally:
        running.kill()
