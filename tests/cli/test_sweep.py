"""Test `hf-itp sweep` on the real pools that the project ships, and on pools of other programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from hf_itp.evaluation.sweep import COLUMNS

DATA = Path(__file__).parents[2] / "examples" / "data"
HUMANEVAL = DATA / "humaneval_150x100.jsonl.gz"


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_published_picture_comes_out(run, tmp_path):
    """The values are those of docs/choosing_beta.md: best-of-100 is below plain sampling, pessimism is not."""
    strategies = "best_of_n,pessimism:beta=0.05,normalize=none"
    done = run("sweep", HUMANEVAL, "-s", strategies, "--n", "1,4,100", "--replicates", 5, "-o", tmp_path)
    assert done.code == 0 and "0.212" in done.err
    rows = rows_of((tmp_path / "sweep.csv").read_text())
    gold = {(row["strategy"], int(row["num_candidates"])): float(row["gold_mean"]) for row in rows}
    assert [round(gold["best_of_n", size], 3) for size in (1, 4, 100)] == [0.223, 0.304, 0.212]
    assert round(gold["pessimism", 100], 3) == 0.316 and round(gold["oracle", 100], 3) == 0.753
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_csv_goes_to_stdout_and_sizes_to_the_smallest_pool(run, tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps({"rewards": row}) + "\n" for row in ([1, 2, 3, None], [4, 5, 6, 7, 8])))
    done = run("sweep", pool, "-s", "best_of_n")
    rows = rows_of(done.out)
    assert tuple(rows[0]) == COLUMNS and [row["num_candidates"] for row in rows] == ["1", "2", "3"]
    assert [float(row["proxy_mean"]) for row in rows] == pytest.approx([4, (8 / 3 + 7) / 2, (3 + 7.5) / 2])
    assert rows[0]["gold_mean"] == "" and rows[0]["tokens_mean"] == ""


@pytest.mark.parametrize("library", ["pandas", "datasets"])
def test_parquet_of_other_programs_is_read(run, tmp_path, library):
    rows = {"prompt": ["a", "b"], "rewards": [[1.0, 3.0], [2.0, 5.0]]}
    path = tmp_path / "pool.parquet"
    if library == "pandas":
        pytest.importorskip("pandas").DataFrame(rows).to_parquet(path)
    else:
        pytest.importorskip("datasets").Dataset.from_dict(rows).to_parquet(path)
    [one, two] = rows_of(run("sweep", path, "-s", "best_of_n").out)
    assert (float(one["proxy_mean"]), float(two["proxy_mean"])) == (2.75, 4.0)


def test_grid_covers_what_can_serve(run, tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"rewards": [10, 20, 40, 80], "gold_rewards": [0, 1, 1, 0]}) + "\n")
    names = {row["strategy"] for row in rows_of(run("sweep", pool, "--n", "2").out)}
    assert names == {"best_of_n", "pessimism", "top_quantile", "best_of_poisson", "oracle"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-s", "best_of_m"), "Unknown strategy 'best_of_m'"),
        (("-s", "beta=1"), "must be names with settings as name=value, got 'beta=1'"),
        (("-s", "pessimism:0.1"), "got 'pessimism:0.1'"),
        (("-s", "all,beta=1"), "must give 'all' no settings"),
        (("-s", "pessimism:beta=-1"), "`beta` must be positive"),
        (("--n", "1,x"), "must be whole numbers"),
        (("--n", "101"), "got 101"),
        (("--gold", "truth"), "`truth` must be a list"),
        (("--rewards", "other"), "got 'other'. It has `rewards`"),
    ],
)
def test_what_cannot_be_replayed_is_refused(run, options, message):
    done = run("sweep", HUMANEVAL, *options)
    assert done.code != 0 and message in " ".join(done.err.split()) and done.out == ""


def test_broken_row_is_named_by_its_line(run, tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"rewards": [1]}\n\n{"rewards": [1\n')
    assert "does not parse in line 3 of" in " ".join(run("sweep", pool).err.split())
