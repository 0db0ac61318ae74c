"""Meta-reinforcement learning that learns to explore, for Stable-Baselines3."""

from sb3_maesn.common.checkpoint.pretrained import list_pretrained
from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm
from sb3_maesn.common.policies import LatentActorCriticPolicy, LatentMlpPolicy, MlpPolicy
from sb3_maesn.common.trial_policy import TrialLstmPolicy
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.trials import TrialVecEnv
from sb3_maesn.latent_space import LatentSpace
from sb3_maesn.maesn import MAESN
from sb3_maesn.maml import MAML
from sb3_maesn.reinforce import REINFORCE
from sb3_maesn.rl2 import RL2
from sb3_maesn.vime import VIME

__version__ = "0.1.0"

__all__ = [
    "MAESN",
    "MAML",
    "REINFORCE",
    "RL2",
    "VIME",
    "LatentActorCriticPolicy",
    "LatentMlpPolicy",
    "LatentSpace",
    "MetaOnPolicyAlgorithm",
    "MlpPolicy",
    "MultiTaskVecEnv",
    "TrialLstmPolicy",
    "TrialVecEnv",
    "list_pretrained",
]
