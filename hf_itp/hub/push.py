"""
Push a policy to the Hub in one commit: weights, tokenizer, calibration, recommended decoding and a card.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedTokenizerBase

from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.belonging import left_out, models_without_a_name
from hf_itp.embedded.names import POLICY_ID, names_policy
from hf_itp.errors import ArgumentError, ArgumentTypeError, ItpWarning
from hf_itp.generation.recommendation import at_commit, decoding_entry, is_hub_id, is_repo_id
from hf_itp.hub.adapters import base_is_missing, publish_adapter, save_policy
from hf_itp.hub.artefacts import write_artefacts
from hf_itp.hub.cards import CardFacts
from hf_itp.hub.licences import licence_of
from hf_itp.hub.reward_reference import current_commit, reward_reference
from hf_itp.hub.upload import prepare_repository, upload_in_one_commit
from hf_itp.hub.written_cards import card_beside
from hf_itp.models.public_names import LOCAL, public_policy
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
    keeps the sections, tags and results of the card beside the policy, such as training writes. No file names a folder
    of this machine; what is left out for that is warned of.

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
        facts ([`CardFacts`], *optional*): For the card, by default [`known_facts`]. A licence that it leaves open is
            the base model's own, if its card states one. `base_model` is also what an adapter is loaded on.

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
    facts = _with_licences(facts or known_facts(policy, repo_id))
    adapter = bool(getattr(policy, "peft_config", None))
    if adapter and (facts.base_model is None or not is_hub_id(facts.base_model)):
        raise base_is_missing(_loaded_from(policy))
    tokenizer = tokenizer or policy_tokenizer(policy)
    api = HfApi(token=token)
    if name is not None and reward_revision is None and name != "embedded":
        entry = at_commit(entry, current_commit(api, name))
    warn_of_left_out(facts, calibrator, _loaded_from(policy), adapter=adapter)
    repo_id = prepare_repository(api, repo_id, private=private, gated=gated, revision=revision)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_policy(policy, folder)
        tokenizer.save_pretrained(folder)
        write_artefacts(
            folder,
            generation_config=policy.generation_config,
            entry=entry,
            calibrator=calibrator,
            facts=replace(facts, repo_id=repo_id),
            published=True,
        )
        publish_adapter(folder, facts.base_model)
        return upload_in_one_commit(api, repo_id, folder, commit_message, revision=revision, create_pr=create_pr)


def known_facts(policy: Any, repo_id: str) -> CardFacts:
    """
    Return what is known of a policy for its card: by itself, and by the card beside it. Complete it with
    `dataclasses.replace`.
    """
    seq2seq = getattr(policy.config, "is_encoder_decoder", False)
    known = CardFacts(
        repo_id,
        base_model=base_model(policy),
        auto_class="AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM",
        adapter=bool(getattr(policy, "peft_config", None)),
    )
    written = card_beside(policy)
    return known if written is None else known.filled_from(written)


def base_model(policy: Any) -> str | None:
    """
    Return the Hub id a policy was loaded from, of the embedded one the id it was made from; `None` if it has none.
    """
    base = public_policy(_loaded_from(policy))
    return base if is_hub_id(base) else None


def warn_of_left_out(
    facts: CardFacts, calibrator: RewardCalibrator | None, loaded_from: str, *, adapter: bool = False
) -> None:
    """Warn of models that what is pushed cannot name, and of an adapter that meets other weights on the Hub."""
    nameless = {}
    if facts.base_model is None and public_policy(loaded_from) == LOCAL:
        nameless["the base model"] = "pass its Hub id (`--base-model`)"
    if calibrator is not None:
        for what in models_without_a_name(calibrator.policy, calibrator.reward_model):
            nameless[f"the {what} of the calibration"] = "push that model, and calibrate with its Hub id"
    if nameless:
        remedy = f"To name them: {'; '.join(dict.fromkeys(nameless.values()))}."
        warnings.warn(left_out(" and ".join(nameless), remedy), ItpWarning, stacklevel=3)
    if adapter and names_policy(loaded_from):
        warnings.warn(
            f"The adapter was trained on the embedded policy, a 4-bit rounding of {POLICY_ID}. Others will load it on "
            "that and get slightly other responses. Evaluate it there before you rely on it.",
            ItpWarning,
            stacklevel=3,
        )


def _loaded_from(policy: Any) -> str:
    return str(getattr(policy.config, "_name_or_path", "") or "")


def _with_licences(facts: CardFacts) -> CardFacts:
    stated = {name: licence_of(name, "dataset") for name in facts.datasets if is_repo_id(name)}
    return replace(
        facts,
        license=facts.license or licence_of(facts.base_model),
        data_licenses={name: licence for name, licence in stated.items() if licence} | facts.data_licenses,
    )
