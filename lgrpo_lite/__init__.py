"""lgrpo-lite: reinforcement fine-tuning with λ-GRPO and GRPO-λ on one consumer GPU."""

__version__ = "0.1.0"
