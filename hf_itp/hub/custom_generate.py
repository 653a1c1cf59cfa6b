"""
The `custom_generate/` folder of a pushed policy. With it, transformers decodes as recommended wherever remote code is
allowed, even if the caller does not know `hf_itp`.
"""

from __future__ import annotations

from pathlib import Path

from hf_itp._version import __version__

FOLDER = "custom_generate"

_GENERATE = '''"""Decode as this checkpoint recommends in the `hf_itp` entry of its generation_config.json."""


def generate(*inputs, model, strategy="auto", **arguments):
    try:
        import hf_itp
    except ImportError as error:
        raise ImportError("This checkpoint is decoded by hf-itp. Install it with `pip install hf-itp`.") from error
    # transformers passes every argument of `generate`, as None if nobody gave it.
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("custom_generate", "trust_remote_code"):
        given.pop(name, None)
    hf_itp.enable()
    # The class's `generate`: this function is the instance's.
    return type(model).generate(model, *inputs, strategy=strategy, **given)
'''


def write_custom_generate(folder: Path) -> None:
    """Write `custom_generate/generate.py` and `custom_generate/requirements.txt` into a checkpoint's folder."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    (place / "generate.py").write_text(_GENERATE, encoding="utf-8")
    release = __version__.split("+")[0]
    (place / "requirements.txt").write_text(f"hf-itp>={release}\n", encoding="utf-8")
