"""Test by counting that the work on many prompts grows with their number, not with its square."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from hf_itp.pools.journal import ReferencePool
from hf_itp.rewards.forward.scoring import map_batches
from hf_itp.rewards.text.encoding import TokenSequence


def test_appending_reads_no_more_when_the_file_is_long(tmp_path, monkeypatch):
    read = {"bytes": 0}
    opened = Path.open

    class Counting(io.FileIO):
        def read(self, size=-1):
            content = super().read(size)
            read["bytes"] += len(content)
            return content

    def counted(path, mode="r", *args, **kwargs):
        return Counting(path, mode.replace("b", "")) if "b" in mode else opened(path, mode, *args, **kwargs)

    pool = ReferencePool(tmp_path, {"seed": 0})
    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.setattr(Path, "read_bytes", lambda path: counted(path, "rb").read())
    costs = []
    for index in range(60):
        before = read["bytes"]
        pool.append([{"index": index, "prompt": "x" * 2000}])
        costs.append(read["bytes"] - before)
    assert max(costs[30:]) <= max(costs[:30]) + 64, costs


@pytest.mark.parametrize("tail", [1, 3, 4096, 4097, 10_000])
def test_line_cut_short_anywhere_is_cut_off(tmp_path, tail):
    pool = ReferencePool(tmp_path, {"seed": 0})
    pool.append([{"index": 0}, {"index": 1, "prompt": "y" * 9000}])
    part = tmp_path / "reference_pool.part-0.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole + b"z" * tail)
    pool.append([{"index": 2}])
    assert part.read_bytes() == whole + json.dumps({"index": 2}).encode() + b"\n"


def test_file_without_one_whole_line_is_emptied(tmp_path):
    part = tmp_path / "reference_pool.part-0.jsonl"
    pool = ReferencePool(tmp_path, {"seed": 0})
    part.write_bytes(b"z" * 5000)
    pool.append([{"index": 2}])
    assert set(pool.rows()) == {2}


def test_batches_look_at_each_length_a_bounded_number_of_times():
    looks = {"count": 0}

    class Ids(tuple):
        def __len__(self):
            looks["count"] += 1
            return super().__len__()

    def looks_for(number):
        looks["count"] = 0
        sequences = [TokenSequence(Ids((1, 2, 3)), (0, 0, 0), (True, True, True)) for _ in range(number)]
        map_batches(lambda batch: torch.zeros(len(batch)), sequences, batch_size=2)
        return looks["count"]

    assert looks_for(400) <= 2.5 * looks_for(200)
