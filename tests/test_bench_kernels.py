"""scripts/bench_kernels.py measures on whatever device there is."""

import re
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_a_contest_is_measured_and_what_cannot_run_here_is_listed_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_kernels

    rows = tmp_path / "rows.md"
    only = ["--only", "block_quant, dequantize", "--rows", str(rows)]
    bench_kernels.main([*only, "--size", "small", "--rounds", "1", "--calls", "1"])
    printed = capsys.readouterr().out
    assert printed.strip() == rows.read_text().strip()
    assert re.search(r"CPU with \d+ cores\n.*jax \d+\.\d+", printed, re.DOTALL)
    for form in ("jaxtrain xla", "a table's look-up"):
        assert re.search(rf"^\| {form} \| \d+\.\d+ \| \d+\.\d+ \| \d+\.\d+ \|$", printed, re.MULTILINE), form
    assert "| jaxtrain gpu | not run: written for gpu, this is cpu | | |" in printed
