"""
Calibrated rewards: the quantile of each among the rewards of reference responses to its prompt.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from huggingface_hub import HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_itp._version import __version__
from hf_itp.calibration import storage
from hf_itp.calibration.belonging import (
    check_draw,
    check_identity,
    left_out,
    models_without_a_name,
    published_identities,
)
from hf_itp.calibration.columns import check_columns, distinct_prompts
from hf_itp.calibration.draw_record import pool_settings, recorded_identities
from hf_itp.calibration.fingerprints import reward_identity
from hf_itp.calibration.predictor import QuantilePredictor
from hf_itp.calibration.references import counts_among, num_scored, reference_table, sorted_references
from hf_itp.checks import check_count, check_rewards
from hf_itp.errors import ArgumentError, ItpWarning
from hf_itp.policies.chat_template import common_and_own
from hf_itp.policies.checks import policy_tokenizer
from hf_itp.pools.draw import check_lengths, draw_references
from hf_itp.pools.file import read_pool
from hf_itp.prompts import check_prompts, prompt_fingerprint
from hf_itp.rewards import RewardFunction, as_reward_function
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.logs import DROPPED
from hf_itp.rewards.resolve import RewardLike
from hf_itp.sampling.description import DrawDescription, with_length

_UNKNOWN = {"name": "", "revision": None, "dtype": None, "weights": None}


class RewardCalibrator:
    r"""
    Turn a reward into its quantile among the rewards of `K` reference responses to the same prompt.

    The first step of CTRL ([InfAlign](https://huggingface.co/papers/2412.19792)): under the reference policy the
    calibrated reward is uniform on `[0, 1]` whatever the prompt and the reward model,

    $$ \hat{C}(x, y) = \frac{1}{K} \sum_k \mathbb{1}[r(x, y) > r(x, z_k)]
    + \tfrac{1}{2} \mathbb{1}[r(x, y) = r(x, z_k)], \quad z_k \sim \pi_{ref}(\cdot | x) $$

    Args:
        prompts (`list[str]` or `list[list[dict]]`): The prompts, or their fingerprints as `fingerprints=`.
        reference_rewards (`torch.Tensor` of shape `(P, K)`): Rewards of each prompt's reference responses, any
            order, NaN for those without one: they are left out and counted.
        policy, reward_model, sampling (`dict`, *optional*): What they were drawn and scored with.
        draw (`dict`, *optional*): The whole description of the draw ([`~sampling.description.DrawDescription`]);
            `None` if not known, as for calibrations written before it was recorded.
        seed (`int`, *optional*): Seed of the draw.
        predictor ([`QuantilePredictor`], *optional*): Predicts the references of other prompts.

    Examples:

    ```python
    >>> import torch
    >>> calibrator = RewardCalibrator(["Why?"], torch.tensor([[0.0, 1.0, 1.0, 2.0]]))
    >>> calibrator.calibrate(["Why?", "Why?"], torch.tensor([1.0, 9.0]))
    tensor([0.5000, 1.0000])

    ```
    """

    def __init__(
        self,
        prompts: Sequence[Prompt] | None = None,
        reference_rewards: torch.Tensor | None = None,
        *,
        fingerprints: Sequence[str] | None = None,
        policy: dict[str, Any] | None = None,
        reward_model: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        draw: dict[str, Any] | None = None,
        seed: int | None = None,
        predictor: QuantilePredictor | None = None,
    ):
        if reference_rewards is None or (prompts is None) == (fingerprints is None):
            raise ArgumentError(
                "`prompts` and `reference_rewards` must both be given, got one or none. Use RewardCalibrator.fit to "
                "draw the references."
            )
        if fingerprints is None:
            fingerprints = [prompt_fingerprint(prompt) for prompt in check_prompts(prompts or [])]
        self.reference_rewards = sorted_references(reference_rewards, len(fingerprints))
        self.fingerprints = list(fingerprints)
        self._rows = {fingerprint: row for row, fingerprint in enumerate(self.fingerprints)}
        if len(self._rows) != len(self.fingerprints):
            raise ArgumentError("`prompts` must hold each prompt once, got repeats. Drop them.")
        self.policy, self.reward_model = policy or dict(_UNKNOWN), reward_model or dict(_UNKNOWN)
        self.sampling, self.draw, self.seed, self.predictor = sampling or {}, draw, seed, predictor

    @property
    def num_reference(self) -> int:
        """`K`, the number of reference responses of a prompt."""
        return self.reference_rewards.shape[1]

    @property
    def no_reward(self) -> torch.Tensor:
        """How many of each prompt's references `(P,)` have no reward and are left out."""
        return self.num_reference - num_scored(self.reference_rewards)

    @property
    def fewest_references(self) -> int:
        """References with a reward of the prompt that has fewest."""
        return self.num_reference - int(self.no_reward.max())

    @classmethod
    def fit(
        cls,
        policy: PreTrainedModel,
        reward_model: RewardLike,
        prompts: Sequence[Prompt],
        *,
        num_reference: int = 100,
        seed: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        reward_view: str = "full",
        reward_kwargs: Mapping[str, Sequence[Any]] | None = None,
        output_dir: str | Path | None = None,
        predict: bool = False,
        batch_size: int | None = None,
        progress: bool | None = None,
        description: DrawDescription | None = None,
        **sampling: Any,
    ) -> Self:
        """
        Draw `num_reference` responses per prompt from the policy and score them.

        A reference without a reward (`None`) is left out and counted ([`no_reward`]). What a reward function logs is
        dropped: references belong to no step. Under `accelerate launch` the processes share the prompts. With
        `output_dir` the responses are kept there as a pool file, from which an interrupted run resumes, with the same
        bytes in the end.

        Args:
            policy (`PreTrainedModel`): The reference policy.
            reward_model: What [`~rewards.as_reward_function`] takes.
            prompts (`list[str]` or `list[list[dict]]`): Equal prompts share their references.
            num_reference (`int`, *optional*, defaults to 100): `K`. The error of a quantile is at most
                `0.5 / sqrt(K)`.
            seed (`int`, *optional*, defaults to 0): Seed of the draw.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): The policy's. By default from where the policy is.
            tools, documents (`list`, *optional*): What the policy may call (functions, or their JSON schemas) and
                read, for its chat template. The reward gets them as columns of these names.
            chat_template_kwargs (`dict`, or a `list` of one per prompt, *optional*): Further arguments of the chat
                template, e.g. `{"enable_thinking": False}`; those of single prompts may hold `tools` and `documents`.
            reward_view (`str`, *optional*, defaults to `"full"`): What the reward reads of a response; see `generate`.
            reward_kwargs (`dict[str, list]`, *optional*): Data columns for the reward, e.g. `{"answer": [...]}`, with
                one entry per prompt.
            output_dir (`str` or `Path`, *optional*): Folder for the pool and the calibration.
            predict (`bool`, *optional*, defaults to `False`): Also fit a [`QuantilePredictor`] for other prompts.
            batch_size (`int`, *optional*): Maximum responses decoded at once.
            progress (`bool`, *optional*): Show progress bars. By default in a terminal.
            description ([`DrawDescription`], *optional*): How to draw, in place of `tokenizer`, `tools`, `documents`,
                `chat_template_kwargs`, `reward_view` and `sampling`.
            sampling: Keywords of `generate`, e.g. `generation_config` or `max_new_tokens`, which defaults to 256.

        Raises:
            `ArgumentError`: If there are no prompts, `num_reference` is below 2, a prompt is too long for the policy,
                equal prompts have different `reward_kwargs` or template arguments, the chat template leaves one of
                these out, a setting asks for something other than independent samples or cannot be recorded, all
                rewards are equal, or `output_dir` holds another draw.
            `ScoringError`: If the reward fails; `output_dir` keeps what was drawn, and the same call takes it up.
        """
        prompts = check_prompts(prompts)
        columns = check_columns(reward_kwargs, len(prompts))
        num_reference = check_count("num_reference", num_reference, 2, "100 is usual.")
        seed = check_count("seed", seed, 0, "Pass e.g. seed=0.")
        reward = as_reward_function(reward_model, device=_device_of(reward_model, policy))
        # Refuse all that can be refused before drawing the first response.
        if description is None:
            tokenizer = tokenizer or policy_tokenizer(policy)
            sampling = with_length(policy, sampling, 256)
            description = DrawDescription.of(
                policy, tokenizer, sampling, reward_view=reward_view,
                **common_and_own(prompts, chat_template_kwargs, tools, documents),
            )  # fmt: skip
            asked = description.asked(policy, sampling)
        else:
            asked = {"do_sample": True, **description.settings}
        columns |= description.context_columns(prompts)
        prompts, columns = distinct_prompts(prompts, columns, reward)
        description.check_prompts(prompts)
        check_lengths(policy, description, prompts)
        reward.check(prompts, **columns, **DROPPED)
        if predict:
            QuantilePredictor.check(reward, prompts)
        recorded = recorded_identities(policy, reward, description, prompts, asked)
        settings = pool_settings(recorded, reward, description, prompts, columns, num_reference, seed)
        rows = draw_references(
            policy, description, reward, prompts, num_reference, seed=seed, settings=settings, columns=columns,
            output_dir=output_dir, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        rewards = reference_table(rows)
        predictor = QuantilePredictor.fit(reward, prompts, rewards) if predict else None
        calibrator = cls(prompts, rewards, **recorded, seed=seed, predictor=predictor)
        if output_dir is not None:
            calibrator.save_pretrained(output_dir)
        return calibrator

    @classmethod
    def from_pool(cls, path: str | Path, **identities: Any) -> Self:
        """
        Make a calibrator from the rewards of an existing pool file, which any engine can write.

        Args:
            path (`str` or `Path`): `.jsonl`, `.jsonl.gz` or `.parquet`, with a `prompt` and its `rewards` per row.
            identities: `policy`, `reward_model`, `sampling` and `seed`, as the constructor takes them.

        Raises:
            `ArgumentError`: If a row is incomplete or has another number of rewards than the first.
        """
        rows = read_pool(Path(path))
        count = len(rows[0]["rewards"]) if rows else 0
        for number, row in enumerate(rows, start=1):
            if len(row["rewards"]) != count:
                raise ArgumentError(
                    f"Every row of a pool must have as many rewards as the first ({count}), got {len(row['rewards'])} "
                    f"in row {number} of {path}. Draw the same number for every prompt."
                )
        rewards = reference_table(rows)
        return cls([row["prompt"] for row in rows], rewards, **identities)

    def calibrate(self, prompts: Sequence[Prompt], rewards: torch.Tensor) -> torch.Tensor:
        """
        Return the calibrated reward of each response, in `[0, 1]`.

        Args:
            prompts (`list[str]` or `list[list[dict]]`): One per row of `rewards`.
            rewards (`torch.Tensor` of shape `(n,)` or `(n, N)`): Raw rewards of responses to them.

        Returns:
            `torch.Tensor`: float32, of the shape of `rewards`.

        Raises:
            `ArgumentError`: If a prompt has no references and there is no predictor; names the remedies.
        """
        below, equal, total = self.counts(prompts, rewards)
        return ((below + equal / 2) / total).to(torch.float32)

    def counts(
        self, prompts: Sequence[Prompt], rewards: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Count the reference rewards below and equal to each reward.

        Returns:
            `tuple`: `below`, `equal` and the number of references with a reward, each float64 shaped like `rewards`.
        """
        exact = check_rewards(rewards)
        if len(prompts) != len(exact):
            raise ArgumentError(
                f"`prompts` must hold one prompt per row of `rewards` ({len(exact)}), got {len(prompts)}. Repeat a "
                "prompt for each of its responses."
            )
        return counts_among(self.references_of(prompts), exact)

    def references_of(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Return the sorted reference rewards `(n, K)` of each prompt, predicted where there are none; NaN is none."""
        self.check_prompts(prompts)
        rows = [self._rows.get(prompt_fingerprint(prompt)) for prompt in prompts]
        unseen = [position for position, row in enumerate(rows) if row is None]
        found = self.reference_rewards[[0 if row is None else row for row in rows]]
        if unseen and self.predictor is not None:
            found[unseen] = self.predictor.predict([prompts[position] for position in unseen], self.num_reference)
        return found

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise `ArgumentError` if a prompt has no references and there is no predictor."""
        unseen = [prompt for prompt in prompts if prompt_fingerprint(prompt) not in self._rows]
        if unseen and self.predictor is None:
            raise ArgumentError(
                f"`prompts` must be among those the calibrator was fitted on, got {len(unseen)} of {len(prompts)} "
                f"that are not, the first {unseen[0]!r:.80}. Fit a calibrator on them too, pass predict=True to "
                "RewardCalibrator.fit for prompts without references, or leave them out."
            )

    def check_belongs(
        self,
        policy: dict[str, Any] | None = None,
        reward_model: dict[str, Any] | None = None,
        draw: dict[str, Any] | None = None,
        prompts: Sequence[Prompt] | None = None,
    ) -> None:
        """
        Refuse another policy, reward model or draw than those of the references.

        Args:
            policy, reward_model (`dict`, *optional*): Their identities.
            draw (`dict`, *optional*): Recorded description of a draw, compared if the references' is known.
            prompts (`list`, *optional*): The prompts drawn for, by default all that either draw records.

        Raises:
            `ArgumentError`: If the calibration is of another policy or reward model, or its references were drawn in
                another way; names every difference.
        """
        check_identity("policy", policy, self.policy)
        check_identity("reward_model", reward_model, self.reward_model)
        check_draw(draw, self.draw, prompts)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `calibration.safetensors` and `calibration.json`."""
        tensors = {"reference_rewards": self.reference_rewards}
        sidecar = {
            "hf_itp_version": __version__,
            "policy": self.policy,
            "reward_model": self.reward_model,
            "sampling": self.sampling,
            "draw": self.draw,
            "num_reference": self.num_reference,
            "seed": self.seed,
            "prompts": self.fingerprints,
            **({"no_reward": int(self.no_reward.sum())} if self.no_reward.any() else {}),
        }
        if self.predictor is not None:
            tensors |= self.predictor.tensors()
            sidecar["predictor"] = self.predictor.description()
        storage.save(Path(folder), tensors, sidecar)

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        reward_model: RewardLike | None = None,
    ) -> Self:
        """
        Load the calibrator of a folder or a Hub repository, which may be a policy's.

        Args:
            reward_model (*optional*): Gives a stored predictor its features. Only needed for prompts without
                references.

        Raises:
            `LoadError`: If there is none, or it cannot be read.
        """
        tensors, sidecar = storage.load(id_or_folder, revision=revision, token=token)
        predictor = None
        if "predictor" in sidecar and reward_model is not None:
            reward: RewardFunction = as_reward_function(reward_model)
            predictor = QuantilePredictor.from_tensors(reward, tensors, sidecar["predictor"])
        calibrator = cls(
            reference_rewards=tensors["reference_rewards"],
            fingerprints=sidecar["prompts"],
            policy=sidecar["policy"],
            reward_model=sidecar["reward_model"],
            sampling=sidecar["sampling"],
            draw=sidecar.get("draw"),
            seed=sidecar["seed"],
            predictor=predictor,
        )
        if predictor is not None:
            calibrator.check_belongs(reward_model=reward_identity(reward))
        return calibrator

    def published(self) -> Self:
        """Return the same calibration for others to read: no folder of this machine is named, weights still are."""
        twin = copy.copy(self)
        twin.policy, twin.reward_model, twin.draw = published_identities(self.policy, self.reward_model, self.draw)
        return twin

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Upload both files in one commit, creating the repository if needed; return the commit's URL."""
        if nameless := models_without_a_name(self.policy, self.reward_model):
            warnings.warn(left_out(f"the {' and the '.join(nameless)}"), ItpWarning, stacklevel=2)
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.published().save_pretrained(folder)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Calibration")
        return str(commit.commit_url)


def _device_of(reward_model: RewardLike, policy: PreTrainedModel) -> Any:
    return policy.device if isinstance(reward_model, (str, Path)) else None
