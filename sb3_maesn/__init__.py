"""Meta-reinforcement learning for Stable-Baselines3."""
