"""Test that files beside the weights are never seen half written, since a push reads its folder during training."""

from __future__ import annotations

import pytest

from hf_itp.hub import CardFacts, write_artefacts
from hf_itp.hub.artefacts import files_put_at_once
from tests.tiny import tiny_model


def written(folder, num_candidates):
    entry = {"strategy": "pessimism", "num_candidates": num_candidates, "beta": 0.1}
    config = tiny_model("llama").generation_config
    write_artefacts(folder, generation_config=config, entry=entry, facts=CardFacts("org/policy"))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def test_reader_of_a_file_that_is_written_again_reads_the_whole_of_one(tmp_path):
    """The reader gets the earlier file to its end, unlike with a file written in place."""
    files = written(tmp_path, 8)
    before = {name: path.read_bytes() for name, path in files.items()}
    opened = {name: path.open("rb") for name, path in files.items()}
    assert written(tmp_path, 16).keys() == files.keys()
    for name, file in opened.items():
        with file:
            assert file.read() == before[name]
    assert files["generation_config.json"].read_bytes() != before["generation_config.json"]
    assert files["README.md"].read_bytes() != before["README.md"]


def test_folder_is_as_it_was_where_writing_fails(tmp_path):
    (tmp_path / "README.md").write_text("before")
    with pytest.raises(OSError, match="disk full"), files_put_at_once(tmp_path) as made:
        (made / "README.md").write_text("after")
        # A push leaves these files out.
        assert made.parent == tmp_path and made.name.startswith("_")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "before"
