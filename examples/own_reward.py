"""
Use a reward of your own: a plain function, by itself or in an ensemble with a reward model.

    python examples/own_reward.py
"""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_itp  # noqa: F401  (teaches `generate` the strategy= keyword)
from hf_itp import embedded

CHAT = [{"role": "user", "content": "Name three rivers in France, separated by commas."}]


def names_three(prompts, completions, **kwargs) -> list[float]:
    """Return 1 for exactly two commas, else 0. A completion is a list of messages for a chat, else a string."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [float(text.count(",") == 2) for text in texts]


def main(max_new_tokens: int = 48) -> list[str]:
    folder = embedded.policy_path()
    tokenizer, policy = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answers = []
    # A list is an ensemble, by default their mean; `hf_itp.rewards.RewardEnsemble` also has the minimum and others.
    for reward_model in (names_three, [names_three, "embedded"]):
        sequences = policy.generate(
            **inputs, strategy="best_of_n", reward_model=reward_model, prompts=[CHAT], num_candidates=16, seed=0,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
        answers.append(tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        print(f"{getattr(reward_model, '__name__', 'ensemble'):12s} {answers[-1]!r}")
    return answers


if __name__ == "__main__":
    main()
