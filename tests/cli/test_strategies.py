"""Test `hf-itp strategies` against the registry."""

from __future__ import annotations

import dataclasses
import json

from hf_itp.strategies import list_strategies
from hf_itp.strategies.registry import strategy_class


def test_json_lists_every_strategy_with_its_fields(run):
    listed = {row["name"]: row for row in json.loads(run("strategies", "--json").out)}
    assert list(listed) == list_strategies()
    for name, row in listed.items():
        assert list(row["fields"]) == [field.name for field in dataclasses.fields(strategy_class(name))]
        assert row["returns"].startswith("Return ") and row["when_to_use"]
        assert not set("\\`*") & set(row["returns"] + row["when_to_use"])
    assert listed["pessimism"]["fields"]["pool"] == "shared"
    assert listed["soft_best_of_n"]["fields"]["temperature"] == "required"


def test_table_names_every_strategy(run):
    out = run("strategies").out
    assert all(f" {name} " in out for name in list_strategies())
