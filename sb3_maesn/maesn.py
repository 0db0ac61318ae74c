"""MAESN: model-agnostic exploration with structured noise (Gupta et al. 2018, arXiv:1802.07245)."""

from typing import TypeVar

from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm

SelfMAESN = TypeVar("SelfMAESN", bound="MAESN")


class MAESN(MetaOnPolicyAlgorithm):
    """Meta-RL that learns to explore.

    A latent drawn once an episode is fed to the policy. Meta-training shapes the policy, a latent distribution for each
    training task and the step sizes of the inner update so that a few updates of the latent distribution solve a new
    task from sparse reward. Parameters are those of :class:`MetaOnPolicyAlgorithm`; its defaults are the paper's.
    """

    def learn(
        self: SelfMAESN,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MAESN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMAESN:
        """Meta-train; see :meth:`MetaOnPolicyAlgorithm.learn`.

        :param total_timesteps: environment steps; the paper's 300 meta-iterations where None
        :param callback: as in SB3
        :param log_interval: iterations between logs
        :param tb_log_name: name of the TensorBoard run
        :param reset_num_timesteps: False continues a run
        :param progress_bar: show one
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
