"""Adaptation of a trained model to new tasks: the rules, the models behind them, and the rounds of episodes."""
