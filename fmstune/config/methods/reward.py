"""reward: train a model that scores conversations, higher for the better of two (Bradley and Terry)."""

from __future__ import annotations

from fmstune.config.methods.record import Method

REWARD = Method(
    name="reward",
    learns="preferences",
    form="judged pair",
    config=("trl", "trainer/reward_config.py", "RewardConfig"),
    lora_learning_rate=1e-3,  # of 1e-4
    demo_learning_rate=1e-3,
    scores=True,
    shown=(("accuracy", "reward accuracy"), ("margin", "margin")),
    results=("eval/accuracy", "eval/margin"),
)
