"""
Draw 16 candidates for one chat and return the one that pessimism picks. The policy and the reward model are the
embedded ones, or any two ids or folders.

    python examples/quickstart.py "How do I keep a sourdough starter alive while travelling?"
"""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_itp  # noqa: F401  (teaches `generate` the strategy= keyword)
from hf_itp import embedded


def main(question: str, policy_id: str, reward_model_id: str, max_new_tokens: int) -> str:
    policy_id = str(embedded.policy_path()) if policy_id == "embedded" else policy_id
    tokenizer = AutoTokenizer.from_pretrained(policy_id)
    policy = AutoModelForCausalLM.from_pretrained(policy_id)
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")

    output = policy.generate(
        **inputs,
        strategy="pessimism",
        beta=0.1,
        reward_model=reward_model_id,
        prompts=[chat],
        num_candidates=16,
        seed=0,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
    )
    response = tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rewards = output.candidate_rewards[0]
    print(response)
    print(f"\nreward {output.rewards[0, 0]:.2f}; candidates from {rewards.min():.2f} to {rewards.max():.2f}")
    return response


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="How do I keep a sourdough starter alive while travelling?")
    parser.add_argument("--policy", default="embedded", help="Hub id or folder")
    parser.add_argument("--reward-model", default="embedded", help="Hub id or folder")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    main(arguments.question, arguments.policy, arguments.reward_model, arguments.max_new_tokens)
