"""orpo: learn the better of two answers and prefer it, without a reference model (Hong et al. 2024,
https://huggingface.co/papers/2403.07691).

TRL 1.16 has no stable trainer for pairs except dpo's. This one is in `trl.experimental`, and may change or be
removed in any release of TRL.
"""

from __future__ import annotations

from fmstune.config.methods.record import REWARDS, REWARDS_RESULTS, Method

ORPO = Method(
    name="orpo",
    learns="preferences",
    form="pair",
    config=("trl", "experimental/orpo/orpo_config.py", "ORPOConfig"),
    lora_learning_rate=1e-5,  # of 1e-6
    demo_learning_rate=1e-3,
    trains="the responses, and the likelihood of the whole better text",
    besides="orpo also learns the prompts of better answers, by their likelihood, as its authors do",
    shown=REWARDS,
    results=REWARDS_RESULTS,
    experimental=True,
)
