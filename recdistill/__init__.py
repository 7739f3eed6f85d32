"""Knowledge distillation for recommendation and CTR prediction."""

__version__ = "0.1.0"
