"""
Save and push what a trained policy carries beside its weights: its calibration, and how to decode it.

A mixin over `transformers.Trainer`. Artefacts go into every saved folder, and into `output_dir` before each push: a
push during training uploads that folder, with only weights and configurations from the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_itp.calibration import RewardCalibrator
from hf_itp.errors import ArgumentError
from hf_itp.generation.recommendation import decoding_entry, is_hub_id
from hf_itp.hub.adapters import base_is_missing, publish_adapter
from hf_itp.hub.artefacts import files_put_at_once, write_artefacts
from hf_itp.hub.cards import CardFacts, policy_card
from hf_itp.hub.licences import licence_of
from hf_itp.hub.push import warn_of_left_out
from hf_itp.hub.reward_reference import published_reward
from hf_itp.models.public_names import public_name, public_policy
from hf_itp.rewards import RewardFunction
from hf_itp.sampling.description import DrawDescription
from hf_itp.training.described import described_objective, described_training
from hf_itp.training.objective import CTRLObjective, ObjectiveArguments

_KL = ("kl_sequence", "kl")

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class CarriesCalibration(_Base):
    """Mixin that saves and pushes `calibrator` and the decoding entry with the model."""

    args: Any
    model: Any
    objective: CTRLObjective
    calibrator: RewardCalibrator | None
    reward: RewardFunction
    draw: DrawDescription
    reference_identity: dict[str, Any]
    responses_are_given: bool = False
    _pushes_now: bool = False

    def __init__(self, *args: Any, **kwargs: Any):
        # What a card states beside what the trainer knows.
        self.datasets: list[str] = []
        self.further_tags: list[str] = []
        self.stated: dict[str, str | None] = {}
        super().__init__(*args, **kwargs)

    def decoding_entry(self) -> dict[str, Any]:
        """Return the entry of `generation_config.json` that `generate(strategy="auto")` follows."""
        args = self.args
        fields = args.strategy_fields if isinstance(args.strategy_fields, dict) else {}
        # A function or a local folder has no id: whoever decodes must pass the reward.
        return decoding_entry(
            args.strategy, args.num_candidates, *published_reward(self.reward), fields, args.reward_view
        )

    def save_artefacts(self, folder: str | Path) -> None:
        """Write the calibration, the decoding entry, `custom_generate/` and the card into `folder`."""
        model: Any = self.accelerator.unwrap_model(self.model)
        write_artefacts(
            folder,
            generation_config=model.generation_config,
            entry=self.decoding_entry(),
            calibrator=self.calibrator,
            facts=self.card_facts(),
            published=self._is_published,
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as `transformers.Trainer` does; further keywords (`license`, `dataset_name`, ...) are the card's."""
        self.check_publishable()
        self._pushes_now = True
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self._pushes_now = False

    def check_publishable(self) -> None:
        """
        Check that others can load what a push would send; warn of what it leaves out.

        Raises:
            `ArgumentError`: If it is an adapter whose base model is a folder of this machine.
        """
        facts, base = self.card_facts(), self.reference_identity["name"]
        if facts.adapter and facts.base_model is None:
            raise base_is_missing(base)
        if self.is_world_process_zero():
            warn_of_left_out(facts, self.calibrator, base, adapter=facts.adapter)

    @property
    def _is_published(self) -> bool:
        return self._pushes_now or bool(self.args.push_to_hub)

    def create_model_card(self, *, model_name: str | None = None, **stated: Any) -> None:  # type: ignore[override]
        """
        Write the card into `output_dir`, at every checkpoint and push, instead of the library's own.

        Args:
            model_name (`str`, *optional*): Not used: the card is named after the repository.
            stated: `license`, `language`, `finetuned_from`, and `dataset_name` or `tags` (text or a list), as in
                transformers and TRL; kept for later cards.

        Raises:
            `ArgumentError`: If the card would not state one of them.
        """
        for name, value in stated.items():
            if value is None:
                continue
            if name in ("dataset_name", "dataset", "tags"):
                known = self.further_tags if name == "tags" else self.datasets
                known += [one for one in ([value] if isinstance(value, str) else value) if one not in known]
            elif name in ("license", "language", "finetuned_from"):
                self.stated["base_model" if name == "finetuned_from" else name] = value
            else:
                raise ArgumentError(
                    f"`{name}` must be left out of the card, got {value!r}, which it would not state. Pass `license`, "
                    "`language`, `finetuned_from`, `dataset_name` or `tags`."
                )
        if self.is_world_process_zero():
            card = policy_card(self.card_facts(), self.decoding_entry(), self.calibrator)
            with files_put_at_once(Path(self.args.output_dir)) as folder:
                (folder / "README.md").write_text(str(card), encoding="utf-8")

    def card_facts(self) -> CardFacts:
        """Return the facts of this training for the card."""
        args, expected = self.args, self.objective.expected()
        steps = self.state.global_step
        last = {name: value for logs in self.state.log_history for name, value in logs.items()}
        results = [
            {"name": name.replace("_", " "), "value": last[name]}
            | ({"low": last[f"{name}_low"], "high": last[f"{name}_high"]} if f"{name}_low" in last else {})
            for name in last
            if name.endswith("win_rate") and not name.startswith("eval_")
        ]
        base = public_policy(self.reference_identity["name"])
        base_id: str | None = self.stated.get("base_model") or (base if is_hub_id(base) else None)
        if "license" not in self.stated:
            # Asked of the Hub once, not at every checkpoint.
            self.stated["license"] = licence_of(base_id)
        return CardFacts(
            repo_id=args.hub_model_id or Path(args.output_dir).resolve().name,
            base_model=base_id,
            license=self.stated["license"],
            language=self.stated.get("language"),
            datasets=list(self.datasets),
            training={
                "method": f"CTRL, {type(self).__name__}",
                **described_objective(args, self.objective),
                "KL aimed at": f"{expected.kl:.3f} nats",
                "KL when this was written": f"{last[kl]:.3f} nats" if (kl := _first(last, _KL)) else "not measured",
                "reward model": public_name(self.reward.name),
                "steps": str(steps),
                **described_training(args, responses_given=self.responses_are_given),
                "compute": f"{last.get('train_runtime', 0.0):.0f} s on {args.world_size} process(es)"
                if "train_runtime" in last
                else "not finished",
            },
            results=results,
            results_on="the prompts of its last training steps",
            adapter=bool(getattr(self.accelerator.unwrap_model(self.model), "peft_config", None)),
            extra_tags=["ctrl", *self.further_tags],
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        self.save_artefacts(folder)
        if self._is_published:
            publish_adapter(folder, self.card_facts().base_model)


def _first(logs: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in logs), None)


class ArtefactsBeforePush(TrainerCallback):
    """Write the artefacts into `output_dir` before a push during training."""

    def __init__(self, trainer: CarriesCalibration):
        self._trainer = trainer

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.is_world_process_zero():
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            self._trainer.save_artefacts(args.output_dir)


def check_strategy(args: ObjectiveArguments) -> None:
    """
    Refuse arguments whose strategy does not exist.

    Raises:
        `ArgumentError`: If `args.strategy` is no strategy, or does not have the fields.
    """
    from hf_itp.strategies import get_strategy

    if args.strategy != "none":
        get_strategy(args.strategy, **(args.strategy_fields if isinstance(args.strategy_fields, dict) else {}))
