"""
A calibration as two files: sorted reference rewards in safetensors, everything that says what they are in JSON.
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
    """Writes both files, each whole or not at all, the sidecar last."""
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
    Tensors and sidecar of a folder or a Hub repository.

    Raises:
        `LoadError`: If a file is missing or cannot be read.
        `ArgumentError`: If the files are of a later version, or do not belong together.
    """
    paths = {name: _path(id_or_folder, name, hub) for name in (TENSORS, SIDECAR)}
    try:
        tensors, sidecar = load_file(paths[TENSORS]), json.loads(paths[SIDECAR].read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"The calibration of {id_or_folder} cannot be read ({error}). Write it anew.") from error
    version = sidecar.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArgumentError(
            f"The calibration of {id_or_folder} has to be of version {SCHEMA_VERSION}, but is of {version!r}. Update "
            "hf_itp, or fit the calibrator anew."
        )
    if len(sidecar["prompts"]) != len(tensors["reference_rewards"]):
        raise ArgumentError(
            f"{SIDECAR} of {id_or_folder} has to name a prompt per row of {TENSORS} "
            f"({len(tensors['reference_rewards'])}), but names {len(sidecar['prompts'])}. Copy both files together."
        )
    return tensors, sidecar


def _path(id_or_folder: str | Path, name: str, hub: dict[str, Any]) -> Path:
    folder = Path(id_or_folder).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise LoadError(f"There is no {name} in {folder}. Give a folder that a calibrator was saved to.")
        return folder / name
    try:
        return Path(hf_hub_download(str(id_or_folder), name, **hub))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise LoadError(
            f"{name} cannot be had from {str(id_or_folder)!r} ({type(error).__name__}: {error}). Check the id and "
            "that the repository holds a calibration, or give a folder."
        ) from error
