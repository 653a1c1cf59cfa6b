"""
Push aligned checkpoints to the Hub: everything in one commit, with a card.
"""

from hf_itp.hub.artefacts import write_artefacts
from hf_itp.hub.cards import CardFacts, calibrator_card, policy_card, reward_model_card
from hf_itp.hub.push import push_to_hub

__all__ = [
    "CardFacts",
    "calibrator_card",
    "policy_card",
    "push_to_hub",
    "reward_model_card",
    "write_artefacts",
]
