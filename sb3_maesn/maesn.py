"""MAESN: model-agnostic exploration with structured noise (Gupta et al. 2018, arXiv:1802.07245)."""

from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm


class MAESN(MetaOnPolicyAlgorithm):
    """Meta-RL that learns to explore.

    A latent drawn once an episode is fed to the policy. Meta-training shapes the policy, a latent distribution for each
    training task and the step sizes of the inner update so that a few updates of the latent distribution solve a new
    task from sparse reward. Parameters are those of :class:`MetaOnPolicyAlgorithm`; its defaults are the paper's.
    """
