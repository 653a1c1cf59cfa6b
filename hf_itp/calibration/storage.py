"""
A calibration as two files: sorted reference rewards in safetensors, and a JSON sidecar that describes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_itp.errors import ArgumentError, LoadError

TENSORS = "calibration.safetensors"
SIDECAR = "calibration.json"
SCHEMA_VERSION = 1


def save(folder: Path, tensors: dict[str, torch.Tensor], sidecar: dict[str, Any]) -> None:
    """Write both files, each whole or not at all, the sidecar last."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TENSORS}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(folder / TENSORS)
    text = json.dumps({"schema_version": SCHEMA_VERSION, **sidecar}, indent=2, ensure_ascii=False) + "\n"
    temporary = folder / f"{SIDECAR}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / SIDECAR)


def load(id_or_folder: str | Path, **hub: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Return the tensors and the sidecar of a folder or a Hub repository.

    Raises:
        `LoadError`: If a file is missing or cannot be read.
        `ArgumentError`: If the files are of a later version, or do not belong together.
    """
    paths = {name: _path(id_or_folder, name, hub) for name in (TENSORS, SIDECAR)}
    try:
        tensors, sidecar = load_file(paths[TENSORS]), json.loads(paths[SIDECAR].read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"The calibration of {id_or_folder} must be readable, got: {error}. Save it again.") from error
    version = sidecar.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArgumentError(
            f"The calibration of {id_or_folder} must be of version {SCHEMA_VERSION}, got {version!r}. Update hf_itp, "
            "or fit the calibrator again."
        )
    if len(sidecar["prompts"]) != len(tensors["reference_rewards"]):
        raise ArgumentError(
            f"{SIDECAR} of {id_or_folder} must name a prompt per row of {TENSORS} "
            f"({len(tensors['reference_rewards'])}), got {len(sidecar['prompts'])}. Copy both files together."
        )
    return tensors, sidecar


def _path(id_or_folder: str | Path, name: str, hub: dict[str, Any]) -> Path:
    folder = Path(id_or_folder).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise LoadError(f"{folder} must hold {name}, got no such file. Pass a folder of a saved calibrator.")
        return folder / name
    try:
        return Path(hf_hub_download(str(id_or_folder), name, **hub))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise LoadError(
            f"{str(id_or_folder)!r} must hold {name}, got {type(error).__name__}: {error}. Check the id and that the "
            "repository holds a calibration, or pass a folder."
        ) from error
