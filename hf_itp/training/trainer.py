"""
CTRL by reinforcement learning: TRL's RLOO with a calibrated and transformed reward.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from transformers import PreTrainedTokenizerBase
from trl import RLOOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import use_adapter

from hf_itp.calibration import RewardCalibrator
from hf_itp.calibration.columns import reward_columns
from hf_itp.calibration.fingerprints import model_identity, policy_identity, reward_identity
from hf_itp.errors import ArgumentError
from hf_itp.policies.loading import with_safe_loading
from hf_itp.prompts import prompt_fingerprint
from hf_itp.rewards import RewardFunction, as_reward_function
from hf_itp.rewards.logs import DROPPED
from hf_itp.rewards.resolve import RewardLike
from hf_itp.sampling.drawing import draw_continuations
from hf_itp.sampling.streams import derived_seed
from hf_itp.training.arguments import CTRLArguments
from hf_itp.training.artefacts import ArtefactsBeforePush, CarriesCalibration, check_strategy
from hf_itp.training.objective import CTRLObjective
from hf_itp.training.reward import TransformedReward, called_as_in_training
from hf_itp.training.rollouts import check_pictures, draws_itself, evaluating, rollout_description

_SHARED_MEMORY = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class CTRLTrainer(CarriesCalibration, RLOOTrainer):  # type: ignore[misc]  # their cards have other arguments
    r"""
    Train a policy for the strategy it will be decoded with.

    [InfAlign](https://huggingface.co/papers/2412.19792)'s CTRL: rewards are **c**alibrated to quantiles under the
    reference policy, **tr**ansformed for the strategy, and maximized by KL-regularized **RL**,

    $$ \max_\pi E_{y \sim \pi}[\Phi(C(x, y))] - \beta KL(\pi \| \pi_{ref}) $$

    TRL's `RLOOTrainer` does the last step: its KL penalty over whole sequences and its leave-one-out baseline are this
    objective, divided by `beta` so that the reward is in nats. Everything else (PEFT, vLLM, DeepSpeed, FSDP,
    conversations and texts) works as in TRL.

    References and rollouts are drawn by one description ([`~sampling.description.DrawDescription`]): the trainer's
    settings, then the checkpoint's, and `chat_template_kwargs`. A setting that the way to roll out would ignore is
    refused.

    Of TRL's private interface it uses the attributes `beta` (set to 1), `generation_config` and `eos_token_ids` (both
    set to the description's), `_metrics` and `_step`, the method `_generate_single_turn`, and the `forward` that TRL
    sets on the instance.

    Args:
        model (`str` or `PreTrainedModel`):
            The policy to train. It starts as the reference policy.
        reward_model:
            What [`~rewards.as_reward_function`] takes; a list of reward models is averaged before it is calibrated.
        args ([`CTRLArguments`]):
            Objective and training.
        train_dataset, eval_dataset (`datasets.Dataset`):
            Data sets with a column `prompt` of texts or of chats.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer.
        calibrator ([`RewardCalibrator`], *optional*):
            Reference rewards of every prompt. By default drawn when training starts, into `output_dir/_calibration`,
            from which an interrupted run resumes.
        kwargs: `peft_config`, `callbacks`, `optimizers` and others of `RLOOTrainer`.

    Logs besides TRL's own metrics: `reward/raw`, `reward/calibrated`, `reward/transformed`, `kl_sequence` (nats),
    `win_rate` and, for prompts with enough completions, the win rate under the strategy, each with its 95 % interval.

    Raises:
        `ArgumentError`: If the arguments contradict each other, a setting would be ignored, or the calibrator belongs
            to another policy, reward model or draw, or has too few references for the transform.
    """

    _tag_names = ["hf-itp", "ctrl", "trl", "rloo"]  # noqa: RUF012  as in TRL
    _name = "CTRL"

    def __init__(
        self,
        model: Any,
        reward_model: RewardLike,
        args: CTRLArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        calibrator: RewardCalibrator | None = None,
        **kwargs: Any,
    ):
        args = with_safe_loading(model, CTRLArguments("ctrl") if args is None else args)
        check_strategy(args)
        count = None if calibrator is None else calibrator.fewest_references
        self.objective = CTRLObjective.from_arguments(args, count)
        reward = as_reward_function(reward_model)
        self.reward = reward
        if calibrator is not None:
            calibrator.check_belongs(reward_model=reward_identity(reward))
        self.calibrator = calibrator
        self._knows_all_prompts = False
        self._transformed = TransformedReward(reward, self.objective, calibrator)
        super().__init__(
            model,
            self._transformed,  # called with keywords, as TRL says
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.beta = 1.0  # the reward is in nats
        self._transformed.mode = self._mode
        policy = self.accelerator.unwrap_model(self.model)
        self.reference_identity = model_identity(policy)
        self._check_reference()
        rows = list(self._rows())
        prompts = [row["prompt"] for row in rows]
        self.draw = rollout_description(self, policy, rows)
        self._draw_as_described()
        self._transformed.reader, self._transformed.context_columns = self.draw.reader, self.draw.context_columns
        self._reward_columns = {} if args.remove_unused_columns else reward_columns(rows)
        self._reward_columns |= self.draw.context_columns(prompts)
        self._as_in_training().check(prompts, **self._reward_columns, **DROPPED)
        if calibrator is not None:
            with self._reference_policy() as reference:
                drawn = self.draw.entries(policy_identity(reference), prompts)
            calibrator.check_belongs(policy=self.reference_identity, draw=drawn, prompts=prompts)
            calibrator.check_prompts(prompts)
        self.add_callback(ArtefactsBeforePush(self))
        if args.push_to_hub:
            self.check_publishable()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the references unless a calibrator was given, and train."""
        self.calibrate()
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the references unless a calibrator was given, and evaluate."""
        self.calibrate()
        return super().evaluate(*args, **kwargs)

    def calibrate(self) -> RewardCalibrator:
        """Return the calibrator, fitted on the prompts of both data sets unless given."""
        if self.calibrator is not None:
            return self.calibrator
        rows = list(self._rows())
        if not rows:
            raise ArgumentError(
                "`calibrator` must be given with a streamed data set, whose prompts are not known beforehand, got "
                "None. Fit one with RewardCalibrator.fit on the prompts."
            )
        check_pictures(rows)
        with self._reference_policy() as policy:
            self.calibrator = RewardCalibrator.fit(
                policy,
                self._as_in_training(),
                [row["prompt"] for row in rows],
                num_reference=self.args.num_reference,
                seed=self.args.seed,
                output_dir=Path(self.args.output_dir) / "_calibration",
                reward_kwargs=self._reward_columns,
                description=self.draw,
            )
        self.objective.check_references(self.calibrator.fewest_references)
        self._transformed.calibrator = self.calibrator
        return self.calibrator

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add win rates against the reference policy and the KL over sequences."""
        mode = self._mode()
        prefix = "" if mode == "train" else "eval_"
        logs.update({f"{prefix}{name}": value for name, value in self._win_rates().items()})
        per_token, lengths = self._metrics[mode].get("kl", []), self._metrics[mode].get("completions/mean_length", [])
        if per_token and len(per_token) == len(lengths):
            pairs = zip(per_token, lengths, strict=True)
            logs[f"{prefix}kl_sequence"] = sum(kl * length for kl, length in pairs) / len(per_token)
        super().log(logs, start_time)

    def _mode(self) -> str:
        # As TRL tells rollouts of training and of evaluation apart.
        return "train" if self.model.training else "eval"

    def _win_rates(self) -> dict[str, float]:
        measured = self._transformed.take_measured()
        if self.accelerator.num_processes > 1:
            measured = gather_object(measured)
            if not self._knows_all_prompts:
                for row in self._rows():
                    self._transformed._prompts.setdefault(prompt_fingerprint(row["prompt"]), row["prompt"])
                self._knows_all_prompts = True
        n, worst = self.args.num_candidates, self.args.strategy == "worst_of_n"
        names = {"win_rate": (1, False)}
        if self.args.strategy != "none" and n > 1:
            names[f"{'worst' if worst else 'best'}_of_{n}_win_rate"] = (n, worst)
        logs = {}
        for name, (size, of_worst) in names.items():
            estimate = self._transformed.win_rates(measured, size, of_worst) if measured else None
            if estimate is None:
                continue
            logs[name] = estimate.mean
            if estimate.num_prompts > 1:
                logs[f"{name}_low"], logs[f"{name}_high"] = estimate.interval
        return logs

    def _rows(self) -> Iterator[dict[str, Any]]:
        datasets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for dataset in (self.train_dataset, *datasets):
            if dataset is not None and hasattr(dataset, "__len__"):
                yield from dataset

    def _as_in_training(self) -> RewardFunction:
        """Return the reward as rollouts call it. What it logs of references is dropped: they belong to no step."""
        return called_as_in_training(self.reward, self.state)

    @property
    def has_whole_weights(self) -> bool:
        """True if every process has all weights, so that our sampler can run the policy."""
        return self.accelerator.distributed_type in _SHARED_MEMORY

    def _check_reference(self) -> None:
        """Refuse a model that was changed in memory: TRL loads the reference policy again by name."""
        if self.ref_model is None or not self.has_whole_weights:
            return
        loaded = model_identity(self.accelerator.unwrap_model(self.ref_model))
        if loaded["weights"] != self.reference_identity["weights"]:
            raise ArgumentError(
                f"`model` must have the weights that are stored under its name, since the reference policy is loaded "
                f"from there, got {self.reference_identity['name']!r} with others (of another revision, or changed "
                "since it was loaded). Save the model with its tokenizer to a folder and load it from there."
            )

    def _draw_as_described(self) -> None:
        if self.use_vllm:
            return
        # TRL's own rollouts get the same settings, all resolved.
        described = copy.deepcopy(self.draw.generation_config)
        described.cache_implementation = self.generation_config.cache_implementation
        described.disable_compile = self.generation_config.disable_compile
        described.pad_token_id = self.generation_config.pad_token_id
        self.generation_config = described
        ends = described.eos_token_id
        self.eos_token_ids = [ends] if isinstance(ends, int) else list(ends or [])

    @contextmanager
    def _reference_policy(self) -> Iterator[Any]:
        model = self.accelerator.unwrap_model(self.model if self.ref_model is None else self.ref_model)
        with evaluating(model):
            if hasattr(model, "peft_config"):
                # As in TRL: the copy of adapters that the model came with, else the model without adapters.
                adapter = "ref" if "ref" in model.peft_config else None
                with use_adapter(model, adapter), _own_forward(model.get_base_model()):
                    yield model
            else:
                with _own_forward(model):
                    yield model

    def _tokenize_prompts(self, prompts: list) -> Any:
        if not self.draw.of_prompts:
            return super()._tokenize_prompts(prompts)
        # TRL renders all chats with one set of arguments, and leaves out what their rows hold.
        return [self.draw.prompt_ids(prompt) for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
        if not draws_itself(self) or images is not None:
            if self.use_vllm:  # draws without dropout, and must see whether this is training
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
            with evaluating(self.accelerator.unwrap_model(self.model)):
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        counts = Counter(map(tuple, prompt_ids))
        place = f"{self.state.global_step}.{self._step}.{self.accelerator.process_index}"
        purpose = f"rollout {'train' if self.model.training else 'eval'} {place}"
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as policy,
            _own_forward(policy.get_base_model() if hasattr(policy, "get_base_model") else policy),
            evaluating(policy),
            torch.no_grad(),
        ):
            drawn = draw_continuations(
                policy,
                [list(prompt) for prompt in counts],
                list(counts.values()),
                self.draw,
                seed=derived_seed(self.args.seed, purpose),
                progress=False,
            )
        responses = {prompt: iter(group) for prompt, group in zip(counts, drawn, strict=True)}
        return [next(responses[tuple(prompt)]).tolist() for prompt in prompt_ids]


@contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    # TRL sets a `forward` on the instance that can also score, and is the class's own without its keyword. A model
    # with one cannot be viewed, and would run prompts once per response.
    forward = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if forward is not None:
            model.forward = forward
