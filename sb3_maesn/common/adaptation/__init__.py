"""Adaptation of a trained model to new tasks: rules, what they learn from, and the rounds of episodes they run."""
