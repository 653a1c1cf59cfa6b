"""
Push a policy to the Hub in one commit: weights, tokenizer, calibration, recommended decoding and a card.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedTokenizerBase

from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import ArgumentError, ArgumentTypeError
from hf_itp.generation.recommendation import at_commit, decoding_entry, is_hub_id
from hf_itp.hub.artefacts import write_artefacts
from hf_itp.hub.cards import CardFacts
from hf_itp.hub.reward_reference import current_commit, reward_reference
from hf_itp.hub.upload import prepare_repository, upload_in_one_commit
from hf_itp.policies.checks import policy_tokenizer


def push_to_hub(
    policy: Any,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    strategy: str | None = None,
    reward_model: Any = None,
    num_candidates: int = 16,
    reward_view: str = "full",
    calibrator: RewardCalibrator | None = None,
    private: bool | None = None,
    gated: Literal["auto", "manual"] | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Policy with its decoding recommendation",
    facts: CardFacts | None = None,
    **strategy_fields: Any,
) -> CommitInfo:
    """
    Push a policy with its recommended decoding, so that anyone can decode it with `generate(strategy="auto")`.

    All in one commit: a repository is never half pushed, and pushing the same content again makes no commit. The card
    is written again each time, from `facts`.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): Its weights are saved as safetensors; only the adapters of a PEFT
            model.
        repo_id (`str`): `name` or `org/name`; created if missing.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Loaded from the policy's repository by default.
        strategy (`str`, *optional*): The strategy to recommend, with `strategy_fields` such as `beta`.
        reward_model (*optional*): What the strategy scores with: a Hub id, `"embedded"`, or a reward model loaded from
            the Hub. Its current commit is recorded, and `strategy="auto"` loads that one.
        num_candidates (`int`, *optional*, defaults to 16): N to recommend.
        reward_view (`str`, *optional*, defaults to `"full"`): What the reward is to read of a response: `"full"`, or
            `"final"`, without a reasoning model's thinking.
        calibrator ([`RewardCalibrator`], *optional*): A calibration to push along.
        private (`bool`, *optional*): Make a new repository private. An error if it exists and is public.
        gated (`str`, *optional*): `"auto"` or `"manual"`: readers must ask for access.
        revision (`str`, *optional*): Branch; created if missing.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
        token (`str` or `bool`, *optional*): Hub token. It is only sent to the Hub, and written nowhere.
        facts ([`CardFacts`], *optional*): For the card.

    Returns:
        `CommitInfo`: Of the new commit, or of the existing one if nothing changed.

    Raises:
        `ArgumentError`: If the strategy, its fields or the reward model cannot be recommended, or an adapter's base
            model is not on the Hub. Nothing is sent then.
        `HubError`: If the Hub refuses or cannot be reached, after three attempts. Nothing is pushed then.

    Examples:

    ```python
    >>> import hf_itp
    >>> hf_itp.push_to_hub(
    ...     policy, "me/policy", strategy="pessimism", beta=0.1, num_candidates=32, reward_model="org/reward-model"
    ... )  # doctest: +SKIP

    ```
    """
    if getattr(policy, "generation_config", None) is None:
        raise ArgumentTypeError(
            f"`policy` must be a model that generates, got a {type(policy).__name__}. Pass a policy."
        )
    name, reward_revision = reward_reference(reward_model)
    entry = decoding_entry(strategy, num_candidates, name, reward_revision, strategy_fields, reward_view)
    others = {"reward_model": name, "reward_view": None if reward_view == "full" else reward_view}
    for given in (*strategy_fields, *(other for other, value in others.items() if value is not None)):
        if not entry:
            raise ArgumentError(f"`{given}` must come with a strategy, got {strategy!r}. Pass strategy=... too.")
    base_model(policy)
    tokenizer = tokenizer or policy_tokenizer(policy)
    api = HfApi(token=token)
    if name is not None and reward_revision is None and name != "embedded":
        entry = at_commit(entry, current_commit(api, name))
    repo_id = prepare_repository(api, repo_id, private=private, gated=gated, revision=revision)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_artefacts(
            folder,
            generation_config=policy.generation_config,
            entry=entry,
            calibrator=calibrator,
            facts=facts or known_facts(policy, repo_id),
        )
        return upload_in_one_commit(api, repo_id, folder, commit_message, revision=revision, create_pr=create_pr)


def known_facts(policy: Any, repo_id: str) -> CardFacts:
    """Return what the policy itself tells for its card; complete it with `dataclasses.replace`."""
    seq2seq = getattr(policy.config, "is_encoder_decoder", False)
    return CardFacts(
        repo_id,
        base_model=base_model(policy),
        auto_class="AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM",
        adapter=bool(getattr(policy, "peft_config", None)),
    )


def base_model(policy: Any) -> str | None:
    """
    Return the Hub id a policy was loaded from; `None` if it was not.

    Raises:
        `ArgumentError`: If the policy is an adapter without one: nobody else could load it.
    """
    base = getattr(policy.config, "_name_or_path", "") or ""
    found = base if is_hub_id(base) else None
    if found is None and getattr(policy, "peft_config", None):
        raise ArgumentError(
            f"`policy` must be an adapter whose base model is on the Hub, got {base!r}. Push the base model first "
            "and load it from there, or push policy.merge_and_unload()."
        )
    return found
