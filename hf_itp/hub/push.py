"""
A policy to the Hub, in one commit: weights, tokenizer, calibration, how to decode it, and a card.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedTokenizerBase

from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.fingerprints import cached_commit
from hf_itp.embedded import reward_model_path
from hf_itp.errors import ArgumentError, ItpError
from hf_itp.hub.artefacts import decoding_entry, write_artefacts
from hf_itp.hub.cards import CardFacts
from hf_itp.policies import policy_tokenizer
from hf_itp.recommendation import is_repo_id
from hf_itp.rewards import RewardFunction, RewardModel


def push_to_hub(
    policy: Any,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    strategy: str | None = None,
    reward_model: Any = None,
    num_candidates: int = 16,
    calibrator: RewardCalibrator | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Policy with its decoding recommendation",
    facts: CardFacts | None = None,
    **strategy_fields: Any,
) -> CommitInfo:
    """
    Pushes a policy with how it wants to be decoded, so that `generate(strategy="auto")` does that anywhere.

    One commit: a repository that is half pushed cannot exist, and pushing the same content again makes none.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): Weights go as safetensors; of a PEFT model the adapters.
        repo_id (`str`): `name` or `org/name`; created if it is not there.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Loaded from beside the policy if absent.
        strategy (`str`, *optional*): What to recommend, with `strategy_fields` such as `beta`. Nothing if absent.
        reward_model (*optional*): What the strategy is to score with: a Hub id, `"embedded"`, or a model loaded from
            the Hub, whose revision is recorded.
        num_candidates (`int`, *optional*, defaults to 16): N to recommend.
        calibrator ([`RewardCalibrator`], *optional*): Carried along.
        private (`bool`, *optional*): Of a repository that is created.
        revision (`str`, *optional*): Branch; created if it is not there.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
        token (`str` or `bool`, *optional*): Hub token.
        facts ([`CardFacts`], *optional*): For the card.

    Returns:
        `CommitInfo`: Of the commit; where nothing changed, of the one that was there.

    Raises:
        `ArgumentError`: If the strategy, its fields or the reward model cannot be recommended; nothing is sent then.
    """
    name, reward_revision = reward_reference(reward_model)
    entry = decoding_entry(strategy, num_candidates, name, reward_revision, strategy_fields)
    if strategy_fields and not entry:
        raise ArgumentError(
            f"`{next(iter(strategy_fields))}` belongs to a strategy, but `strategy` is None. Pass strategy=... too."
        )
    tokenizer = tokenizer or policy_tokenizer(policy)
    api = HfApi(token=token)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        base = getattr(policy.config, "_name_or_path", "") or None
        facts = facts or CardFacts(repo_id, base_model=base if base and is_repo_id(base) else None)
        write_artefacts(
            folder, generation_config=policy.generation_config, entry=entry, calibrator=calibrator, facts=facts
        )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            # Never weights that run code when they are read.
            ignore_patterns=["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt"],
        )


def reward_reference(reward_model: Any) -> tuple[str | None, str | None]:
    """
    Id and revision by which others can load a reward model.

    Raises:
        `ArgumentError`: If there is none: a function, an ensemble, a folder on this machine.
    """
    if reward_model is None:
        return None, None
    if isinstance(reward_model, str):
        name, revision = reward_model, None
    else:
        model = getattr(reward_model, "model", reward_model)
        config = getattr(model, "config", None)
        name = str(getattr(reward_model, "name", None) or getattr(config, "_name_or_path", ""))
        revision = cached_commit(name)
    if name == "embedded" or _is_embedded(name):
        return "embedded", None
    if not is_repo_id(name) or Path(name).is_dir():
        raise ArgumentError(
            f"`reward_model` has to be one that others can load, a Hub id or 'embedded', but is {name!r}. Push it "
            "first, or leave `reward_model` out."
        )
    return name, revision


def published_reward(reward: RewardFunction) -> tuple[str | None, str | None]:
    """Id and revision of a reward model that others can load; none of a function, an ensemble or a local folder."""
    try:
        return reward_reference(reward) if isinstance(reward, RewardModel) else (None, None)
    except ArgumentError:
        return None, None


def _is_embedded(name: str) -> bool:
    try:
        return Path(name).is_dir() and Path(name).resolve() == Path(reward_model_path()).resolve()
    except ItpError:  # the packages it is made of are not installed
        return False
