"""MAESN: model-agnostic exploration with structured noise (Gupta et al. 2018, arXiv:1802.07245)."""

from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm


class MAESN(MetaOnPolicyAlgorithm):
    """Meta-RL algorithm that learns structured exploration.

    The policy receives a latent that is drawn once per episode. Meta-training learns the policy, a latent distribution
    for each training task and the step sizes of the inner update, such that a few updates of the latent distribution
    solve a new task from sparse reward. The parameters are those of :class:`MetaOnPolicyAlgorithm`, whose defaults
    follow the paper.
    """
