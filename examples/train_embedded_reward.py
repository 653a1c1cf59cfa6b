"""
Train the embedded reward model on pairs of a better and a worse answer, and report how good and how biased it is.

    python examples/train_embedded_reward.py                                # Anthropic/hh-rlhf, helpful-base, Hub
    python examples/train_embedded_reward.py --train a.jsonl.gz --test b.jsonl.gz   # rows: prompt, chosen, rejected

The model is a linear head over two poolings of the encoder's lower layers (`hf_itp/embedded/pooling.py`), fitted to
the Bradley-Terry likelihood. The problem is convex, so there is no seed. Cross-validation on the training pairs, which
never splits a conversation, chooses the ridge. The test pairs are used once, at the end.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch.nn.functional import softplus
from transformers import BertModel, logging

from hf_itp.embedded.pooling import pool
from hf_itp.embedded.reward_model import ENCODER_LAYERS, SHIPPED, assemble, encoder_folder, load_tokenizer
from hf_itp.rewards.reward_model import RewardModel
from hf_itp.rewards.text.encoding import PairEncoder, TokenSequence

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
NUM_FOLDS = 5
KEY_RIDGE = 1e-4
NUM_KEY_RESPONSES = 800  # responses whose tokens the keys are fitted on


class Pair(NamedTuple):
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str


def read_pairs(path: Path | None, split: str) -> list[Pair]:
    if path is None:
        from datasets import load_dataset

        rows = [
            {"prompt": row["chosen"][: _last_turn(row["chosen"])]}
            | {kind: row[kind][_last_turn(row[kind]) :] for kind in ("chosen", "rejected")}
            for row in load_dataset("Anthropic/hh-rlhf", data_dir="helpful-base", split=split)
        ]
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    return [Pair(_messages(row["prompt"]), row["chosen"].strip(), row["rejected"].strip()) for row in rows]


def _last_turn(transcript: str) -> int:
    marker = "\n\nAssistant:"
    return transcript.rindex(marker) + len(marker)


def _messages(transcript: str) -> list[dict[str, str]]:
    turns = re.split(r"\n\n(Human|Assistant):", transcript)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [
        {"role": roles[who], "content": text.strip()} for who, text in zip(turns[::2], turns[1::2], strict=True)
    ]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def pooled_features(pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys `(2, D)`, and the pooled hidden states `(2n, 2, D)` of chosen 0, rejected 0, chosen 1, ..."""
    source = encoder_folder()
    encoder = BertModel.from_pretrained(source, num_hidden_layers=ENCODER_LAYERS, add_pooling_layer=False).eval()
    sequences = PairEncoder(load_tokenizer(source), pairs=True, max_length=512).encode(
        [pair.prompt for pair in pairs for _ in range(2)], [text for pair in pairs for text in pair[1:]]
    )

    @torch.no_grad()
    def hidden_states(batch: list[TokenSequence]) -> tuple[torch.Tensor, ...]:
        ids, type_ids, mask = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
            for rows in ([s.ids for s in batch], [s.type_ids for s in batch], [[1] * len(s.ids) for s in batch])
        )
        hidden = encoder(input_ids=ids, token_type_ids=type_ids, attention_mask=mask).last_hidden_state
        return hidden, type_ids, mask

    keys = fit_keys([hidden_states([sequence]) for sequence in sequences[:NUM_KEY_RESPONSES]])
    features = torch.empty(len(sequences), *keys.shape)
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        hidden, _, mask = hidden_states([sequences[index] for index in batch])
        features[batch] = pool(hidden, mask, keys)
    return keys, features


def fit_keys(examples: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """
    Return two directions: one whose attention is closest, in cross-entropy, to uniform over the response, and one
    whose attention is closest to the token that ends it. Both are convex problems.
    """
    hidden = torch.cat([states[0] for states, _, _ in examples]).double()
    rows = torch.repeat_interleave(
        torch.arange(len(examples)), torch.tensor([len(mask[0]) for _, _, mask in examples])
    )
    response = torch.cat([type_ids[0] / type_ids.sum() for _, type_ids, _ in examples]).double()
    end = torch.cat([torch.eye(len(mask[0]))[-1] for _, _, mask in examples]).double()
    return torch.stack([_fit_key(hidden, rows, target) for target in (response, end)]).float()


def _fit_key(hidden: torch.Tensor, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    key = torch.zeros(hidden.shape[1], dtype=torch.float64, requires_grad=True)
    count = int(rows[-1]) + 1

    def loss() -> torch.Tensor:
        logits = hidden @ key
        largest = torch.full((count,), -torch.inf).double().scatter_reduce(0, rows, logits.detach(), "amax")
        sums = torch.zeros(count).double().index_add(0, rows, (logits - largest[rows]).exp())
        return ((sums.log() + largest).sum() - target @ logits) / count + KEY_RIDGE * key.square().sum()

    _minimise(loss, key)
    return key.detach()


def fit_head(differences: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the Bradley-Terry weights, which minimize `softplus(-differences @ w).mean() + ridge * |w|^2`."""
    weights = torch.zeros(differences.shape[1], dtype=torch.float64, requires_grad=True)
    _minimise(lambda: softplus(-differences @ weights).mean() + ridge * weights.square().sum(), weights)
    return weights.detach()


def _minimise(loss: Callable[[], torch.Tensor], variable: torch.Tensor) -> None:
    optimizer = torch.optim.LBFGS([variable], max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def choose_ridge(differences: torch.Tensor, pairs: list[Pair]) -> float:
    """Return the ridge with the smallest held-out loss; pairs that open with the same question share a fold."""
    openings = [hashlib.sha256(pair.prompt[0]["content"].encode()).digest() for pair in pairs]
    folds = torch.tensor([opening[0] % NUM_FOLDS for opening in openings])
    losses = {}
    for ridge in RIDGES:
        margins = torch.empty(len(pairs), dtype=torch.float64)
        for fold in range(NUM_FOLDS):
            held_out = folds == fold
            margins[held_out] = differences[held_out] @ fit_head(differences[~held_out], ridge)
        losses[ridge] = softplus(-margins).mean().item()
        accuracy = (margins > 0).double().mean().item()
        print(f"ridge {ridge}: held-out loss {losses[ridge]:.4f}, accuracy {accuracy:.3f}", flush=True)
    return min(losses, key=losses.__getitem__)


def train(pairs: list[Pair], output: Path) -> None:
    keys, features = pooled_features(pairs)
    flat = features.flatten(1).double()
    scale = flat.std(dim=0) + 1e-3
    differences = (flat[::2] - flat[1::2]) / scale
    weights = fit_head(differences, choose_ridge(differences, pairs)) / scale
    bias = -(flat @ weights).mean()  # the average answer gets 0
    head = {"keys": keys, "weights": weights.reshape(keys.shape).float(), "bias": bias.reshape(1).float()}
    save_file({name: tensor.contiguous() for name, tensor in head.items()}, output)


def report(pairs: list[Pair], trained_file: Path) -> dict[str, float]:
    """Measure the finished checkpoint, loaded as users load it."""
    with tempfile.TemporaryDirectory() as folder:
        assemble(trained_file, Path(folder))
        reward_model = RewardModel.from_pretrained(folder)
    prompts = [pair.prompt for pair in pairs]
    chosen = reward_model(prompts, [pair.chosen for pair in pairs])
    rejected = reward_model(prompts, [pair.rejected for pair in pairs])
    right = (chosen > rejected).double()
    longer = torch.tensor([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    lengths = torch.tensor([len(text) for pair in pairs for text in pair[1:]])
    rewards = torch.stack([chosen, rejected], dim=1).flatten()
    return {
        "pairs": len(pairs),
        "accuracy": right.mean().item(),
        "standard_error": (right.var() / len(pairs)).sqrt().item(),
        "accuracy_of_always_longer": ((longer > 0) + 0.5 * (longer == 0)).double().mean().item(),
        "accuracy_where_shorter_is_better": right[longer < 0].mean().item(),
        "accuracy_where_longer_is_better": right[longer > 0].mean().item(),
        "rank_correlation_with_length": _rank_correlation(rewards, lengths),
        "reward_mean": rewards.mean().item(),
        "reward_std": rewards.std().item(),
    }


def _rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack([values.double().argsort().argsort() for values in (a, b)]).double()
    return torch.corrcoef(ranks)[0, 1].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="JSON lines of prompt, chosen, rejected; default: from the Hub")
    parser.add_argument("--test", type=Path, help="the same, to report on")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="default: the file the package ships")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # it would list the encoder's upper layers as unused
    logging.disable_progress_bar()
    train(read_pairs(arguments.train, "train"), arguments.output)
    measured = report(read_pairs(arguments.test, "test"), arguments.output)
    print(json.dumps({name: round(value, 4) for name, value in measured.items()}, indent=2))


if __name__ == "__main__":
    main()
