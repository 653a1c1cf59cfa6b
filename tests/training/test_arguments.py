"""Test which arguments of the trainers are written, and which stay in memory."""

from __future__ import annotations

import copy
import pickle

import pytest

from hf_itp import CTRLArguments, QuantileRegressionArguments

TOKEN = "hf_a_token_of_the_users"


@pytest.mark.parametrize("arguments", [CTRLArguments, QuantileRegressionArguments])
def test_tokens_are_copied_but_never_pickled(arguments, tmp_path):
    args = arguments(str(tmp_path), hub_token=TOKEN, report_to="none", use_cpu=True, strategy_fields={"beta": 0.1})
    for twin in (copy.copy(args), copy.deepcopy(args)):
        assert twin.hub_token == TOKEN and twin.strategy_fields == {"beta": 0.1}
    assert copy.deepcopy(args).strategy_fields is not args.strategy_fields
    written = pickle.dumps(args)
    assert TOKEN.encode() not in written
    assert pickle.loads(written).hub_token is None and pickle.loads(written).num_candidates == args.num_candidates
