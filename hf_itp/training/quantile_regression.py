"""
CTRL without rollouts: regress the policy's log-ratio to the reference policy on the known log-ratio of the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.columns import reward_columns
from hf_itp.calibration.fingerprints import model_identity, reward_identity
from hf_itp.calibration.references import reference_table
from hf_itp.errors import ArgumentError
from hf_itp.policies.chat_template import arguments_in_rows
from hf_itp.policies.logprobs import batch_logprobs, padded
from hf_itp.pools.file import read_pool
from hf_itp.pools.journal import POOL
from hf_itp.pools.schema import Row, fewest_rewards
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards import as_reward_function
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.logs import DROPPED
from hf_itp.rewards.resolve import RewardLike
from hf_itp.sampling.description import DrawDescription
from hf_itp.training.arguments import QuantileRegressionArguments
from hf_itp.training.artefacts import ArtefactsBeforePush, CarriesCalibration, check_strategy
from hf_itp.training.objective import CTRLObjective
from hf_itp.training.reward import called_as_in_training
from hf_itp.training.rollouts import check_pictures, end_tokens


class QuantileRegressionTrainer(CarriesCalibration, Trainer):
    r"""
    Train a policy for the strategy it will be decoded with, from reference responses only.

    The optimum of CTRL's objective is \\( \pi \propto \pi_{ref} e^{\Phi(C) / \beta} \\). Its partition function is
    known, since calibrated rewards are uniform under the reference policy, so the log-ratio can be regressed:

    $$ L = E_{y \sim \pi_{ref}} \left[ \left( \frac{\hat\Phi(x, y)}{\beta} - \log Z
    - \log \frac{\pi(y|x)}{\pi_{ref}(y|x)} \right)^2 \right] $$

    as in [QRPO](https://huggingface.co/papers/2507.08068), with ties counted half and the exact partition function of
    every transform. The gradient is linear in the target, so it is unbiased if the transform's estimate is. It needs
    no rollouts and no second model in memory. Each response is calibrated among the other references of its prompt.

    Args:
        model (`PreTrainedModel`):
            The reference policy, which is trained.
        reward_model:
            What [`~rewards.as_reward_function`] takes.
        args ([`QuantileRegressionArguments`]):
            Objective and training.
        train_dataset (`datasets.Dataset`, *optional*):
            Data set with a column `prompt`. References are drawn when training starts, into `output_dir/_calibration`,
            unless `pool` holds them.
        pool (`str` or `Path`, *optional*):
            A folder that `RewardCalibrator.fit(output_dir=...)` wrote, or a pool file with `prompt`, `responses` and
            `rewards`. Its prompts are trained on, or with `train_dataset` only those in both.
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer.
        peft_config (`peft.PeftConfig`, *optional*):
            Adapters to train instead of the whole model.
        reference_logprobs (`list[float]`, *optional*):
            Log-probability under the reference policy of every response trained on, in the order of the pool: the
            attribute of that name of another run on the same pool. By default computed when training starts.

    Raises:
        `ArgumentError`: If neither `train_dataset` nor `pool` is given, the pool lacks a prompt of the dataset, or
            there are too few references for the transform.
    """

    _tag_names = ["hf-itp", "ctrl", "quantile-regression"]  # noqa: RUF012  as in TRL

    def __init__(
        self,
        model: Any,
        reward_model: RewardLike,
        args: QuantileRegressionArguments,
        *,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Any = None,
        pool: str | Path | None = None,
        peft_config: Any = None,
        reference_logprobs: Sequence[float] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if train_dataset is None and pool is None:
            raise ArgumentError(
                "`train_dataset` or `pool` must be given, got neither. Pass prompts to draw references for, "
                "references, or both to train on some prompts of the pool."
            )
        check_strategy(args)
        reward = as_reward_function(reward_model)
        self.reward = reward
        self.reference_identity = model_identity(model)
        further: Any = args.generation_kwargs or {}
        own = {
            "max_new_tokens": args.max_completion_length,
            "eos_token_id": end_tokens(model, processing_class),
        }
        rows = [] if train_dataset is None else list(train_dataset)
        self._prompts = None if train_dataset is None else [row["prompt"] for row in rows]
        self._pool = None if pool is None else pool_file(pool)
        self.responses_are_given = pool is not None
        self.calibrator = None
        self._read_pool = None if self._pool is None else read_pool(self._pool)
        known = rows if self._read_pool is None or rows else self._read_pool
        self.draw = DrawDescription.of(
            model,
            processing_class,
            own | further,
            chat_template_kwargs=args.chat_template_kwargs,  # type: ignore[arg-type]  # a dict by now
            of_prompts=arguments_in_rows(known),
            reward_view=args.reward_view,
        )
        check_pictures(rows)
        self.draw.check_prompts([row["prompt"] for row in known])
        self._reward_columns = reward_columns(rows) | self.draw.context_columns(self._prompts or [])
        reward.check(self._prompts or [], **self._reward_columns, **DROPPED, trainer_state=None)
        count = args.num_reference if self._read_pool is None else fewest_rewards(self._read_pool)
        self.objective = CTRLObjective.from_arguments(args, count)
        if self._read_pool is not None and self._prompts is not None:
            self._read_pool = _rows_of(self._read_pool, self._prompts)
        if peft_config is not None:
            from peft import get_peft_model

            # peft draws adapters from the global generators, which `Trainer` seeds only later.
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                torch.manual_seed(args.seed)  # noqa: TID251  peft takes no generator
                model = get_peft_model(model, peft_config)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": []}),
            processing_class=processing_class,
            data_collator=self._collate,
            callbacks=callbacks,
            **kwargs,
        )
        self._log_ratios: list[float] = []
        self.reference_logprobs = None if reference_logprobs is None else list(reference_logprobs)
        self.add_callback(ArtefactsBeforePush(self))
        if args.push_to_hub:
            self.check_publishable()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the references unless given, compute the targets, and train."""
        rows = self._references()
        examples = self._examples(rows)
        if self.reference_logprobs is None:
            self.reference_logprobs = self._reference_logprobs(examples)
        if len(self.reference_logprobs) != len(examples):
            raise ArgumentError(
                f"`reference_logprobs` must hold one number per response trained on ({len(examples)}), got "
                f"{len(self.reference_logprobs)}. Leave it out, or take it from a run on the same pool."
            )
        known = zip(examples, self.reference_logprobs, strict=True)
        self.train_dataset = Dataset.from_list([{**example, "ref_logprob": logprob} for example, logprob in known])
        return super().train(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        log_ratios = batch_logprobs(model, inputs) - inputs["ref_logprob"]
        loss = (inputs["target"] - log_ratios).square().mean()
        self._log_ratios += log_ratios.detach().float().tolist()
        return (loss, log_ratios) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the KL to the reference policy in nats, estimated by importance weights."""
        if self._log_ratios:
            ratios = torch.tensor(self._log_ratios, dtype=torch.float64)
            logs["kl"] = float((ratios.softmax(dim=0) * ratios).sum() - ratios.logsumexp(0) + torch.log(
                torch.tensor(float(len(ratios)), dtype=torch.float64)))  # fmt: skip
            self._log_ratios = []
        super().log(logs, start_time)

    def _references(self) -> list[Row]:
        if self._read_pool is None:
            folder = Path(self.args.output_dir or ".") / "_calibration"
            policy: Any = self.accelerator.unwrap_model(self.model)
            RewardCalibrator.fit(
                policy.eval(),
                called_as_in_training(self.reward, self.state),
                self._prompts or [],
                num_reference=self.args.num_reference,
                seed=self.args.seed,
                output_dir=folder,
                reward_kwargs=self._reward_columns,
                description=self.draw,
            )
            self._pool = folder / POOL
            self._read_pool = read_pool(self._pool)
        if self._pool is not None and (self._pool.parent / "calibration.json").exists():
            self.calibrator = RewardCalibrator.from_pretrained(self._pool.parent)
            self.calibrator.check_belongs(policy=self.reference_identity, reward_model=reward_identity(self.reward))
            self._check_prompts_are_read_alike(self.calibrator)
        else:
            rewards = reference_table(self._read_pool)
            identities: dict[str, Any] = {
                "policy": self.reference_identity,
                "reward_model": reward_identity(self.reward),
            }
            self.calibrator = RewardCalibrator([row["prompt"] for row in self._read_pool], rewards, **identities)
        self.objective.check_references(self.calibrator.fewest_references - 1)
        return self._read_pool

    def _check_prompts_are_read_alike(self, calibrator: RewardCalibrator) -> None:
        """Compare only how prompts become tokens, since no more responses are drawn."""
        if calibrator.draw is not None:
            prompts = [row["prompt"] for row in self._read_pool or []]
            ours = self.draw.entries(calibrator.draw["policy"], prompts)
            alike = {name: ours[name] for name in ("chat_template", "tokenizer", "reward_view")}
            calibrator.check_belongs(draw={**calibrator.draw, **alike}, prompts=prompts)

    def _examples(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        tokenizer: Any = self.processing_class
        examples = []
        for number, row in enumerate(rows, start=1):
            if len(row.get("responses") or []) != len(row["rewards"]):
                raise ArgumentError(
                    f"Every row of `pool` must have a response per reward, got {len(row.get('responses') or [])} for "
                    f"{len(row['rewards'])} in row {number}. Keep the responses when you draw."
                )
            prompt = self.draw.prompt_ids(row["prompt"])
            responses = row.get("response_ids") or [
                [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                for text in row["responses"]
            ]
            # Nothing is learned from responses without a reward.
            known = [place for place, reward in enumerate(row["rewards"]) if reward is not None]
            responses = [responses[place] for place in known]
            targets = self._targets(reference_table([row])[0, known])
            examples += [
                {"prompt_ids": prompt, "response_ids": list(response), "target": target}
                for response, target in zip(responses, targets.tolist(), strict=True)
                if response
            ][: self.args.responses_per_prompt]
        return examples

    def _targets(self, rewards: torch.Tensor) -> torch.Tensor:
        ordered = rewards.sort().values
        below = torch.searchsorted(ordered, rewards)
        equal = torch.searchsorted(ordered, rewards, right=True) - below
        targets = self.objective.rewards(below, equal - 1, len(rewards) - 1)
        if self.args.partition == "exact":
            return targets - self.objective.log_partition()
        exponents = self.objective.transform((below + equal.double() / 2) / len(rewards)) / self.objective.beta
        return targets - (exponents.logsumexp(dim=0) - math.log(len(rewards)))

    @torch.no_grad()
    def _reference_logprobs(self, examples: list[dict[str, Any]]) -> list[float]:
        """Compute them with the policy, which is the reference policy until the first step."""
        found: list[float] = []
        model = self.accelerator.unwrap_model(self.model).to(self.args.device).eval()
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            inputs = self._prepare_inputs(self._collate([{**example, "ref_logprob": 0.0} for example in batch]))
            with self.compute_loss_context_manager():
                found += batch_logprobs(model, inputs).tolist()
        return found

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = padded([e["prompt_ids"] for e in examples], [e["response_ids"] for e in examples])
        numbers = {
            name: torch.tensor([float(e[name]) for e in examples], dtype=torch.float32)
            for name in ("target", "ref_logprob")
        }
        return inputs | numbers


def pool_file(pool: str | Path) -> Path:
    """Return the pool file of a calibration's folder, or the file itself."""
    path = Path(pool)
    return path / POOL if path.is_dir() else path


def _rows_of(rows: Sequence[Row], prompts: Sequence[Prompt]) -> list[Row]:
    """Return the rows of these prompts, in the order of the pool."""
    wanted = {prompt_fingerprint(prompt): prompt for prompt in prompts}
    found = {prompt_fingerprint(row["prompt"]): row for row in rows}
    for fingerprint, prompt in wanted.items():
        if fingerprint not in found:
            raise ArgumentError(
                f"Every prompt of `train_dataset` must be in `pool`, got {prompt!r:.60}, which is not. Calibrate with "
                "the prompts to train on, texts as texts and chats as chats, or leave `train_dataset` out."
            )
    return [row for fingerprint, row in found.items() if fingerprint in wanted]
