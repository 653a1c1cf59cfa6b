"""
Train SmolLM2-135M in three ways at the same budget, and compare the results at equal KL:

    python examples/train_ctrl.py                      # prompts of Anthropic/hh-rlhf, from the Hub
    python examples/train_ctrl.py --prompts FILE       # rows with a `prompt`, such as hh_helpful_train.jsonl.gz

- `raw`: the reward as it is, as in RLHF
- `calibrated`: its quantile under the policy, `transform="identity"`
- `ctrl`: the quantile transformed for best-of-4, `exponential` with the best t

All three have the same references, LoRA, number of steps and target KL; the reward is the embedded reward model. Each
policy then answers held-out prompts. Its win rate against the untrained policy is measured, decoded plainly and with
best-of-4 on both sides. The stronger the adapter, the larger the KL: the adapter is measured as trained and at twice
its strength, so that the three can be compared at equal KL. Takes 38 minutes on one core of a 2-core machine;
`--quick` does a tenth of everything, to show that it runs.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_itp import QuantileRegressionArguments, QuantileRegressionTrainer, RewardCalibrator, RewardModel
from hf_itp.embedded import policy_path, reward_model_path
from hf_itp.functional import alignment_tradeoff, best_of_n_win_rate, beta_for_kl, kl_k1, win_rate
from hf_itp.functional.transforms import Transform
from hf_itp.functional.win_rates import Estimate, prompt_win_rates
from hf_itp.sampling import draw_responses
from hf_itp.sampling.drawing import prompt_ids

ARMS: dict[str, dict[str, Any]] = {
    "raw": {"transform": "identity"},
    "calibrated": {"transform": "identity"},
    "ctrl": {"transform": "auto"},
}
STRENGTHS = (1.0, 2.0)
N = 4
RATIOS = 2  # responses per prompt from which the KL is estimated; each costs two passes
LONGEST_PROMPT = 40  # tokens


class RawRewardTrainer(QuantileRegressionTrainer):
    """The same regression on the reward itself, the baseline for calibration and transformation."""

    raw_beta = 1.0

    def _targets(self, rewards: torch.Tensor) -> torch.Tensor:
        exponents = rewards / self.raw_beta
        return exponents - (exponents.logsumexp(0) - torch.log(torch.tensor(float(len(rewards)))))


def read_prompts(path: Path | None, tokenizer: Any, count: int) -> list[list[dict[str, str]]]:
    """Return the first questions of distinct conversations, only short ones, so that there are many."""
    if path is None:
        from datasets import load_dataset

        rows = load_dataset("Anthropic/hh-rlhf", data_dir="helpful-base", split="train")
        texts = [row["chosen"] for row in rows]
    else:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            texts = [json.loads(line)["prompt"] for line in file]
    questions = dict.fromkeys(text.split("Assistant:")[0].replace("Human:", "").strip() for text in texts)
    chats = [[{"role": "user", "content": question}] for question in questions if question]
    short = [chat for chat in chats if len(prompt_ids(tokenizer, chat)) <= LONGEST_PROMPT + 20]
    return short[:count]


def raw_beta(calibrator: RewardCalibrator, kl: float) -> float:
    """Return the beta at which the policy tilted by the raw reward is `kl` nats away, in the mean over prompts."""
    rewards = calibrator.reference_rewards.double()

    def divergence(beta: float) -> float:
        law = (rewards / beta).softmax(-1)
        return float((law * (law * rewards.shape[1]).log()).sum(-1).mean())

    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if divergence(middle) > kl else (low, middle)
    return middle


@torch.no_grad()
def measure(model: Any, tokenizer: Any, reward: RewardModel, prompts: list, count: int, tokens: int) -> dict:
    """Return rewards `(P, G)` of the policy's own responses, and log-ratios `(P, RATIOS)` of the first of them."""
    drawn = draw_responses(model, tokenizer, prompts, count, seed=7, max_new_tokens=tokens)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for group in drawn for ids in group]
    rewards = reward([prompt for prompt in prompts for _ in range(count)], texts).view(len(prompts), count)
    ratios = torch.empty(len(prompts), RATIOS)
    for row, (prompt, group) in enumerate(zip(prompts, [group[:RATIOS] for group in drawn], strict=True)):
        start = prompt_ids(tokenizer, prompt)
        ours = logprobs(model, start, group)
        with model.disable_adapter():
            ratios[row] = ours - logprobs(model, start, group)
    return {"rewards": rewards, "log_ratios": ratios}


def logprobs(model: Any, prompt: list[int], responses: list[torch.Tensor]) -> torch.Tensor:
    """Return the log-probability of each response to one prompt."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.cat([torch.tensor(prompt), response]) for response in responses], batch_first=True
    )
    length = torch.tensor([len(response) for response in responses])
    logits = model(input_ids=ids, logits_to_keep=ids.shape[1] - len(prompt) + 1).logits[:, :-1].float()
    picked = logits.log_softmax(-1).gather(-1, ids[:, len(prompt) :, None])[..., 0]
    return (picked * (torch.arange(picked.shape[1]) < length[:, None])).sum(-1)


def set_strength(model: Any, share: float) -> None:
    """Set how much of the adapter is added to the weights."""
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.set_scale("default", share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="JSON lines with a `prompt`; default: the Hub's")
    parser.add_argument("--output", type=Path, default=Path("outputs/train_ctrl"))
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    sizes = (6, 4, 32, 4, 12) if options.quick else (48, 96, 32, 6, 24)
    train_prompts, eval_prompts, references, drawn, tokens = sizes

    began = time.monotonic()
    reward = RewardModel.from_pretrained(str(reward_model_path()))
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = read_prompts(options.prompts, tokenizer, train_prompts + eval_prompts)
    learned, held_out = prompts[:train_prompts], prompts[train_prompts:]
    policy = AutoModelForCausalLM.from_pretrained(policy_path())
    common = {"num_reference": references, "tokenizer": tokenizer, "max_new_tokens": tokens}
    for name, chosen in (("train", learned), ("held_out", held_out)):
        RewardCalibrator.fit(policy, reward, chosen, output_dir=options.output / name, progress=True, **common)
    calibrator = RewardCalibrator.from_pretrained(options.output / "train")
    reference = RewardCalibrator.from_pretrained(options.output / "held_out").reference_rewards
    print(f"{time.monotonic() - began:6.0f} s  {len(prompts)} prompts calibrated with {references} references each")

    results, shared_logprobs = [], None
    for name, objective in ARMS.items():
        model = AutoModelForCausalLM.from_pretrained(policy_path())
        args = QuantileRegressionArguments(
            str(options.output / name), **objective, strategy="best_of_n", num_candidates=N, target_kl=0.5,
            responses_per_prompt=8, per_device_train_batch_size=16, per_device_eval_batch_size=32,
            num_train_epochs=1, learning_rate=4e-4, lr_scheduler_type="cosine", max_grad_norm=1.0, logging_steps=8,
            save_strategy="no", report_to="none", seed=0, use_cpu=True,
        )  # fmt: skip
        trainer_class = RawRewardTrainer if name == "raw" else QuantileRegressionTrainer
        trainer = trainer_class(
            model,
            reward,
            args,
            processing_class=tokenizer,
            pool=options.output / "train",
            reference_logprobs=shared_logprobs,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        if isinstance(trainer, RawRewardTrainer):
            trainer.raw_beta = raw_beta(calibrator, 0.5)
        trainer.train()
        print(f"{time.monotonic() - began:6.0f} s  {name} trained: {trainer.objective.transform}")
        shared_logprobs = trainer.reference_logprobs
        trained = trainer.model.eval()
        for strength in STRENGTHS:
            set_strength(trained, strength)
            found = measure(trained, tokenizer, reward, held_out, drawn, tokens)
            results.append({"arm": name, "strength": strength, "transform": trainer.objective.transform, **found})
            torch.save(results, options.output / "measured.pt")
            kl, plain = kl_k1(found["log_ratios"]).mean, win_rate(found["rewards"], reference).mean
            seconds = time.monotonic() - began
            print(f"{seconds:6.0f} s  {name} x {strength}: KL {kl:.3f}, win rate {plain:.3f}")
    report(results, reference, options.output)
    print(f"{time.monotonic() - began:6.0f} s  in all")


def report(results: list[dict], reference: torch.Tensor, folder: Path) -> None:
    """Print and write the measurements, the differences at equal KL, and a picture with the curves of theory."""
    columns = ("kl", "win_rate", f"best_of_{N}")
    rows = []
    for result in results:
        rewards = result["rewards"]
        estimates = (
            kl_k1(result["log_ratios"]),
            win_rate(rewards, reference),
            best_of_n_win_rate(rewards, reference, N),
        )
        rows.append(
            {"arm": result["arm"], "strength": result["strength"], **dict(zip(columns, estimates, strict=True))}
        )
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "strength", *(f"{name}{suffix}" for name in columns for suffix in ("", "_se"))])
        for row in rows:
            numbers = [number for name in columns for number in (row[name].mean, row[name].standard_error)]
            writer.writerow([row["arm"], row["strength"], *(f"{number:.4f}" for number in numbers)])
    print(f"\n{'arm':<12}{'adapter':>8}{'KL':>16}{'win rate':>18}{f'best-of-{N} win rate':>24}")
    for row in rows:
        cells = [f"{row[name].mean:.3f} ± {1.96 * row[name].standard_error:.3f}" for name in columns]
        print(f"{row['arm']:<12}{row['strength']:>8}{cells[0]:>16}{cells[1]:>18}{cells[2]:>24}")
    level = min(max(float(r["log_ratios"].mean()) for r in results if r["arm"] == arm) for arm in ARMS)
    print(f"\nAt a KL of {level:.3f} nats, on straight lines between measured points; intervals over prompts, paired:")
    at = {arm: at_kl([r for r in results if r["arm"] == arm], reference, level) for arm in ARMS}
    for column, name in enumerate(("win rate", f"best-of-{N} win rate")):
        for arm in ARMS:
            estimate = Estimate.over_prompts(at[arm][column])
            print(f"  {arm:<12}{name:<20}{estimate.mean:.3f} ± {1.96 * estimate.standard_error:.3f}")
        for other in ("raw", "calibrated"):
            difference = Estimate.over_prompts(at["ctrl"][column] - at[other][column])
            print(f"  ctrl - {other:<12}{'':<13}{difference.mean:+.3f} ± {1.96 * difference.standard_error:.3f}")
    picture(rows, {result["arm"]: result["transform"] for result in results}, folder)


def at_kl(results: list[dict], reference: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return win rates per prompt `(P,)` at a KL, plain and best-of-N; the first point is the untrained policy."""
    half = torch.full((len(reference),), 0.5, dtype=torch.float64)
    points = [(0.0, half, half)]
    for result in sorted(results, key=lambda result: float(result["log_ratios"].mean())):
        rates = [prompt_win_rates(result["rewards"], reference, n) for n in (1, N)]
        points.append((float(result["log_ratios"].mean()), rates[0], rates[1]))
    for below, above in itertools.pairwise(points):
        if level <= above[0] + 1e-12:
            share = (level - below[0]) / (above[0] - below[0])
            return torch.lerp(below[1], above[1], share), torch.lerp(below[2], above[2], share)
    raise AssertionError("the level is at most the largest KL of every arm")


def picture(rows: list[dict], transforms: dict[str, Transform], folder: Path) -> None:
    """Draw the measured points and the curves of the optima, for rewards without ties."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    colors = {"raw": "#0072b2", "calibrated": "#e69f00", "ctrl": "#009e73"}
    top = max(0.2, 1.15 * max(row["kl"].mean for row in rows))
    levels = torch.linspace(0.01, top, 25).tolist()
    for panel, key, n in ((panels[0], "win_rate", 1), (panels[1], f"best_of_{N}", N)):
        for arm in ("calibrated", "ctrl"):
            betas = [beta_for_kl(transforms[arm], kl) for kl in levels]
            curve = [alignment_tradeoff(transforms[arm], beta).best_of_n_win_rate(n) for beta in betas]
            panel.plot(levels, curve, "--", color=colors[arm], linewidth=1, label=f"optimum of {arm}")
        for arm, color in colors.items():
            mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["kl"].mean)
            panel.errorbar(
                [row["kl"].mean for row in mine], [row[key].mean for row in mine],
                yerr=[1.96 * row[key].standard_error for row in mine], fmt="o-", color=color, capsize=3, label=arm,
            )  # fmt: skip
        panel.axhline(0.5, color="#999999", linewidth=0.8)
        panel.set_xlabel("KL to the untrained policy, nats")
        panel.set_ylabel("win rate" if n == 1 else f"win rate, both best-of-{n}")
    panels[0].set_title("Decoded plainly")
    panels[1].set_title(f"Decoded with best-of-{N}")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(folder / "train_ctrl.png", dpi=150)


if __name__ == "__main__":
    main()
