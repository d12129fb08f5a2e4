"""`jaxtrain data`: its figures are those of the rows that training reads, and its rows are what the model sees."""

import dataclasses
import io
import itertools
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from messages import check, refusal
from rich.console import Console
from tiny_run import CONFIGS, QUICKSTART, sets

from jaxtrain.cli.config_file import load
from jaxtrain.cli.data import shown_row
from jaxtrain.cli.data_streams import Stores, Tokenising, streams, telling_lines
from jaxtrain.cli.main import main
from jaxtrain.data import ByteTokenizer, DataConfig, Document, Part, Source, batches_of, open_rows
from jaxtrain.data.examples import MaskedTokens
from jaxtrain.data.summary import summaries

PHASES = "(@Phase(steps=3,batch_size=4,sequence_length=64), @Phase(steps=2,batch_size=8,sequence_length=64))"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """The command line of a mixture in two phases that read the same rows."""
    for name, count in (("large", 30), ("small", 12)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}\n" * (1 + number))
    parts = ",".join(f"@Weighted(source=@TextFiles(glob='{tmp_path}/{name}/*'))" for name in ("large", "small"))
    changes = {
        "data.source": f"@Mixture(sources=({parts},))",
        "phases": PHASES,
        "data.validation_fraction": 0.2,
        "optimizer.learning_rate.warmup_steps": 1,
        "hooks": "()",
    }
    return [QUICKSTART, *sets(changes)]


def test_its_figures_are_those_of_the_rows_that_training_reads(arguments):
    config = load(QUICKSTART, arguments[2::2]).config
    (stream,) = streams(config, Stores(Console(quiet=True)))
    assert (stream.phases, stream.steps, stream.rows_read) == ([0, 1], 5, 28)
    found = stream.summaries
    read = next(batches_of(stream.rows, batch_size=28))
    assert sum(each.tokens_read for each in found) == read.weights.sum()
    for number, (each, source) in enumerate(zip(found, config.data.sources, strict=True)):
        alone = dataclasses.replace(config.data, source=source)
        epoch = open_rows(alone, split="train", sequence_length=64, seed=0, num_epochs=1)
        weights = np.stack([epoch[row].weights for row in range(len(epoch))])
        assert each.padding == pytest.approx(1 - weights.mean(dtype=np.float64)) and each.rows_per_epoch == len(epoch)
        rows = sum(f"/{each.label.split('/')[-2]}/" in stream.rows.describe(row) for row in range(28))
        assert each.epochs == pytest.approx(rows / len(epoch)), number
        texts = [len(document.text) + 1 for document in source.documents()]
        assert each.training.tokens + each.validation.tokens == sum(texts) and each.longest <= max(texts)
        assert number or each.training.documents + each.validation.documents == len(texts)  # the small one is cut
        assert each.training.tokens == weights.sum() + each.training.documents


def test_it_says_what_there_is_and_prints_rows_whose_text_can_be_read_on(arguments, capsys):
    assert main(["data", *arguments, "--rows", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("phases 0, 1: 5 steps read 28 rows of 64 tokens\n")
    assert printed.count("tokenised now") == 2
    rows = [block for block in printed.split("\n\n") if block.startswith("row ")]
    assert [row.split(":")[0] for row in rows] == ["row 0", "row 1", "row 2"]
    for row in rows:
        given, *asked = re.findall(r"(?:given|weight 1) +'(.*?)'( <end of document>)?$", row, re.MULTILINE)[:2]
        assert re.fullmatch(r"\S|\\n| ", given[0]) and re.search(r"(large|small) \d", asked[0][0])


@pytest.fixture
def validation(tmp_path) -> list[str]:
    """What adds a validation set to the command line, and an evaluation of two batches."""
    (tmp_path / "other").mkdir()
    for number in range(9):
        (tmp_path / "other" / f"{number}.txt").write_text("some text " * (1 + 4 * number))
    text = f"@TextFiles(glob='{tmp_path}/other/*')"
    changes = {
        "validation": f"(@ValidationSet(name='other',source={text}),)",
        "hooks": "(@Evaluate(every_steps=1,batches=2),)",
    }
    return sets(changes)


def test_it_shows_validation_sets_and_the_rows_that_an_evaluation_reads(arguments, validation, tmp_path, capsys):
    assert main(["data", *arguments, *validation, "--rows", "0"]) == 0
    held_out, other = re.split("validation set other: ", capsys.readouterr().out.split("held-out text: ")[1])
    assert re.fullmatch(r"\d+ rows; an evaluation of the run reads (8 or 16|8 or all|all)\s*", held_out)
    lengths = [len(file.read_text()) + 1 for file in (tmp_path / "other").iterdir()]  # with the end of the document
    assert f"  text        {len(lengths)} documents, {sum(lengths):,} tokens\n" in other
    assert f"median {sorted(lengths)[4]:,} tokens, longest {max(lengths):,}" in other
    rows, read = re.match(r"(\d+) rows; an evaluation of the run reads (.*)\n", other).groups()
    assert int(rows) > 16 and read == "8 or 16"
    [(again, padding)] = re.findall(r"^  rows +(\d+) in all, ([\d.]+)% padding$", other, re.MULTILINE)
    assert again == rows
    filled = (sum(lengths) - len(lengths)) / (int(rows) * 64)  # the last token of a document only is a target
    assert float(padding) == pytest.approx(100 * (1 - filled), abs=0.05)


def test_the_second_time_it_comes_from_the_cache_unless_it_is_asked_to_rebuild(arguments, validation, capsys):
    said = []
    for more in ([], [], ["--rebuild"]):
        assert main(["data", *arguments, *validation, "--rows", "0", *more]) == 0
        said.append(re.findall(r"^  tokens +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert said[0] == said[2] == ["tokenised now"] * 3
    assert all(re.fullmatch(r"from the cache, tokenised \d{4}-\d\d-\d\d \d\d:\d\d", line) for line in said[1])


def test_the_two_most_telling_lines_are_these(arguments):
    (stream,) = streams(load(QUICKSTART, arguments[2::2]).config, Stores(Console(quiet=True)))
    text, read = telling_lines(stream)
    assert re.fullmatch(r"\d+ documents, [\d,]+ tokens to train on, [\d,]+ to validate on \(tokenised now\)", text)
    epochs = [f"{each.epochs:.3g} of {each.label}" for each in stream.summaries]
    assert read.startswith("the run's 5 steps read ") and f"epochs {', '.join(epochs)}; " in read


class Answers(Source):
    """Two questions with their answers."""

    def documents(self):
        for number, answer in enumerate(("yes", "no")):
            yield Document(str(number), (Part(f"q{number}? ", 0.0), Part(answer, 2.0)))

    def fingerprint(self):
        return "answers"


def test_a_row_shows_the_weights_of_the_loss_and_where_documents_end():
    data = DataConfig(source=Answers(), validation_fraction=0)
    rows = open_rows(data, split="train", sequence_length=16, seed=0)
    lines = list(shown_row(rows, 0, data.tokenizer))
    assert sorted(lines[:4] + ["-"] + lines[4:8]) == sorted(
        [
            *("  0[0:7]", "    given       'q'", "    weight 0    '0? '", "    weight 2    'yes' <end of document>"),
            *(
                "-",
                "  1[0:6]",
                "    given       'q'",
                "    weight 0    '1? '",
                "    weight 2    'no' <end of document>",
            ),
        ]
    )
    assert lines[8:] == ["  3 of padding"]
    assert summaries(data, rows, rows_read=1)[0].with_loss == pytest.approx((4 + 3) / (7 + 6))


def test_a_row_of_masked_tokens_shows_what_is_shown_and_what_is_asked(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghijklmnopqrstuvwxyz")
    source = load(QUICKSTART, [f"data.source=@TextFiles(glob='{tmp_path}/a.txt')"]).config.data.source
    examples = MaskedTokens(mask=300, kept=0.0, random=0.0)
    data = DataConfig(source=source, validation_fraction=0, examples=examples)
    rows = open_rows(data, split="train", sequence_length=32, seed=0)
    name, shown, *asked, padding = shown_row(rows, 0, ByteTokenizer())
    assert name == "  a.txt[0:26]" and padding == "  6 of padding"
    letters = "".join(re.findall(r"'(.*?)'", " ".join(asked)))
    assert sorted(re.search("'(.*?)'", shown)[1] + letters) == list("abcdefghijklmnopqrstuvwxyz") and letters


def test_progress_is_a_bar_on_a_terminal_and_a_line_now_and_then_elsewhere(monkeypatch):
    clock = itertools.count(0, 6.0)  # seconds
    monkeypatch.setattr("jaxtrain.cli.data_streams.time.monotonic", lambda: next(clock))
    told = {}
    for terminal in (True, False):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, force_interactive=terminal, width=200)
        with Tokenising(console) as progress:
            tell = progress.of_source(Answers())
            for documents in (1, 2, 3):
                tell(documents, 1000 * documents)
        told[terminal] = output.getvalue()
    assert "3 documents, 3,000 tokens" in told[True] and "━" in told[True]
    assert told[False].count("\n") == 1 and "2 documents, 2,000 tokens" in told[False]


def test_parquet_with_a_column_of_weights_is_a_configuration(tmp_path, capsys):
    rows = {"text": [f"Text {n}. " * 5 for n in range(20)], "quality": [n % 3 / 2 for n in range(20)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    changes = {"data.source.glob": str(tmp_path / "*.parquet"), "data.source.weight": "quality", "hooks": "()"}
    assert main(["data", str(CONFIGS / "parquet_tiny.gin"), *sets(changes), "--rows", "8"]) == 0
    printed = capsys.readouterr().out
    assert {weight for weight in re.findall(r"^    weight (\S+)", printed, re.MULTILINE)} == {"0", "0.5", "1"}
    assert re.search(r"^  loss +on 6\d\.\d% of the tokens$", printed, re.MULTILINE)


def test_a_number_of_rows_below_zero_is_refused(arguments, capsys):
    check(refusal(capsys, "data", *arguments, "--rows", "-1"), "--rows=-1")
