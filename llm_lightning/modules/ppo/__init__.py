"""Proximal policy optimization, GRPO and RLOO: rollouts, advantages, updates."""
