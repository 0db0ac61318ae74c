"""The base of the on-policy meta-learners: collect, adapt, collect again, take one trust-region step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import get_device

from sb3_maesn.common.adaptable_algorithm import AdaptableAlgorithm
from sb3_maesn.common.adaptation.rounds import AdaptationResult
from sb3_maesn.common.baselines import RIDGE
from sb3_maesn.common.collection import CollectionPlan, Collector, collect_meta_batch
from sb3_maesn.common.constructors import check_types
from sb3_maesn.common.critic import fit_critic
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.env_util import as_multi_task
from sb3_maesn.common.gauss_newton import Composition
from sb3_maesn.common.inner_update import InnerUpdate
from sb3_maesn.common.iteration_log import collection_record, step_record
from sb3_maesn.common.meta_objective import MetaObjective
from sb3_maesn.common.meta_parameters import TaskLatents, read_parameters, write_parameters
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.settings import NUMBERS, check_fixed, check_settings, value_at
from sb3_maesn.common.shared_episodes import sample_by_group
from sb3_maesn.common.trust_region import Evaluate, TrustRegion, trust_region_step
from sb3_maesn.common.type_aliases import MetaBatch, MetaParameters, ObjectiveValue, StepResult, Tasks
from sb3_maesn.envs.multi_task import MultiTaskVecEnv

SelfMetaOnPolicyAlgorithm = TypeVar("SelfMetaOnPolicyAlgorithm", bound="MetaOnPolicyAlgorithm")


class MetaOnPolicyAlgorithm(AdaptableAlgorithm):
    """Meta-learning with a likelihood-ratio, reparameterised or reward-weighted inner update and a TRPO meta step.

    One meta-iteration collects ``n_episodes`` episodes of each of ``meta_batch_size`` tasks before each of
    ``n_inner_steps`` inner updates and once after the last, then takes one trust-region step on all meta-parameters.
    All randomness of iteration i comes from the seed and i alone, so that a run that is saved, loaded and continued
    equals one that was never stopped.

    :param policy: ``"LatentMlpPolicy"`` or a subclass of LatentActorCriticPolicy
    :param env: an id of this package, a Gymnasium environment with tasks, or a VecEnv of such
    :param learning_rate: of the critic (used with ``baseline="critic"``)
    :param meta_batch_size: B, tasks of one iteration
    :param n_episodes: K, episodes of each task in each rollout
    :param n_prior_episodes: where given, every task's latent distribution before the inner update is the prior, and
        this many episodes of it are shared by all tasks of equal dynamics in place of pre-update episodes of their own
        (native environments only)
    :param balance_episodes: with ``n_prior_episodes`` and ``reward_weighted``, let the tasks divide the shared episodes
        evenly among them, so that the prior covers all tasks
    :param n_inner_steps: inner updates; 0 trains without adaptation
    :param inner_update: ``likelihood_ratio``, ``reparameterised`` or ``reward_weighted``
    :param adapt_policy: update theta in the inner update too (Eq. 4)
    :param first_order: stop the gradient through the inner gradients
    :param step_size_init: initial step size of the latents
    :param step_size_max: bound on the latents' learned step sizes; longer steps let tasks live outside the bulk of the
        prior, where a sparse reward is never met
    :param log_std_step_size_max: bound on those of the log std in place of ``step_size_max``; dense reward makes them
        longer than several rounds of sparse reward bear, whose later gradients grow with 1 / std^2
    :param learn_step_sizes: False keeps step sizes and temperature as they are
    :param policy_step_size_init: initial step size of theta
    :param temperature_init: initial temperature of the reward-weighted update
    :param latent_mean_init_std: spread of the tasks' initial latent means
    :param inner_std_floor: least standard deviation by which the inner update normalises episode advantages
    :param kl_coef: weight of the KL between the tasks' latents and the prior
    :param latent_kl_coef: weight of the latents' own KL in the trust region
    :param target_kl: trust region, on the mean KL of the post-update action distributions. It may be a schedule: a
        function of the part that is left of all steps, those of earlier calls of ``learn`` included, as an iteration
        begins
    :param gamma: discount factor
    :param gae_lambda: of the generalised advantages
    :param baseline: ``linear`` (fitted to each task's batch) or ``critic``
    :param baseline_ridge: of the linear baseline's ridge regression; more where episodes are few and observations large
    :param n_critic_updates: epochs of the critic in each iteration
    :param cg_max_steps: conjugate-gradient iterations
    :param cg_damping: added to the Fisher matrix's diagonal
    :param line_search_shrinking_factor: by which a refused step is shortened
    :param line_search_max_iter: tries of the line search
    :param fisher_subsampling: the Fisher product uses every n-th time step, but at least ten of a task's mean episode
    :param stats_window_size: episodes over which ``rollout/*`` averages
    :param tensorboard_log: folder of the TensorBoard logs
    :param policy_kwargs: arguments of the policy
    :param verbose: 0, 1 or 2
    :param seed: of everything random
    :param device: ``"cpu"``, or ``"auto"``, which means the CPU here: the networks are small, the physics runs there
    :param _init_setup_model: whether to build the networks now
    :raises ValueError: for settings out of range, and for an environment or a policy that does not fit
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LatentMlpPolicy": LatentActorCriticPolicy}
    checkpoint_progress = (*AdaptableAlgorithm.checkpoint_progress, "groups_per_batch")
    #: Arguments that make the algorithm what it is, with the only values it allows.
    fixed_settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        meta_batch_size: int = 20,
        n_episodes: int = 20,
        n_prior_episodes: int | None = None,
        balance_episodes: bool = False,
        n_inner_steps: int = 1,
        inner_update: str = "likelihood_ratio",
        adapt_policy: bool = False,
        first_order: bool = False,
        step_size_init: float = 1.0,
        step_size_max: float | None = None,
        log_std_step_size_max: float | None = None,
        learn_step_sizes: bool = True,
        policy_step_size_init: float = 0.1,
        temperature_init: float = 0.3,
        latent_mean_init_std: float = 1.0,
        inner_std_floor: float = 1e-8,
        kl_coef: float = 0.1,
        latent_kl_coef: float = 0.01,
        target_kl: float | Schedule = 0.01,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        baseline: str = "linear",
        baseline_ridge: float = RIDGE,
        n_critic_updates: int = 10,
        cg_max_steps: int = 10,
        cg_damping: float = 0.01,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        fisher_subsampling: int = 10,
        stats_window_size: int = 400,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "cpu",
        _init_setup_model: bool = True,
    ):
        self.meta_batch_size = meta_batch_size
        self.n_episodes = n_episodes
        self.n_prior_episodes = n_prior_episodes
        self.balance_episodes = balance_episodes
        self.n_inner_steps = n_inner_steps
        self.inner_update = inner_update
        self.adapt_policy = adapt_policy
        self.first_order = first_order
        self.step_size_init = step_size_init
        self.step_size_max = step_size_max
        self.log_std_step_size_max = log_std_step_size_max
        self.learn_step_sizes = learn_step_sizes
        self.policy_step_size_init = policy_step_size_init
        self.temperature_init = temperature_init
        self.latent_mean_init_std = latent_mean_init_std
        self.inner_std_floor = inner_std_floor
        self.kl_coef = kl_coef
        self.latent_kl_coef = latent_kl_coef
        self.target_kl = target_kl
        self.baseline = baseline
        self.baseline_ridge = baseline_ridge
        self.n_critic_updates = n_critic_updates
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.fisher_subsampling = fisher_subsampling
        self._check_settings()
        self.groups_per_batch = 1  # of tasks that share prior episodes
        self._meta_batch: MetaBatch | None = None
        self.adaptation: AdaptationResult | None = None
        self.policy_adaptation: list[float] = []
        if isinstance(env, str):
            env = as_multi_task(env, meta_batch_size * n_episodes)
        super().__init__(
            policy,
            env,
            learning_rate,
            gamma,
            gae_lambda,
            stats_window_size,
            tensorboard_log,
            policy_kwargs,
            verbose,
            seed,
            _cpu(device),
            _init_setup_model,
        )

    # Set-up

    def _check_settings(self) -> None:
        check_types(vars(self), type(self), NUMBERS)
        check_fixed(vars(self), self.fixed_settings, type(self).__name__)
        check_settings(vars(self))
        _ = self._inner_spec  # which checks itself

    @property
    def _inner_spec(self) -> InnerUpdate:
        return InnerUpdate(
            self.inner_update, self.adapt_policy, self.first_order, self.inner_std_floor, self.balance_episodes
        )

    def _trust_region(self, remaining: float) -> TrustRegion:
        return TrustRegion(
            value_at("target_kl", self.target_kl, remaining),
            self.cg_max_steps,
            self.cg_damping,
            self.line_search_shrinking_factor,
            self.line_search_max_iter,
        )

    def _setup_model(self) -> None:
        self._check_settings()
        super()._setup_model()
        if self.meta_batch_size > self.n_train_tasks:
            raise ValueError(
                f"meta_batch_size ({self.meta_batch_size}) must not exceed the number of training tasks"
                f" ({self.n_train_tasks})"
            )
        self.task_latents = self._make_task_latents()

    def _make_task_latents(self) -> TaskLatents:
        return TaskLatents(
            self.n_train_tasks,
            self.policy.latent_dim,
            dict(self._actor.named_parameters()) if self.adapt_policy else {},
            self.latent_mean_init_std if self.n_prior_episodes is None else 0.0,
            self.step_size_init,
            self.policy_step_size_init,
            self.temperature_init,
            th.Generator().manual_seed(self.entropy),
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_meta_batch", "adaptation", "policy_adaptation"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "task_latents"], []

    def lacking_to_train(self, contents: str) -> list[str]:
        """Nothing but the critic's optimiser, if there is a critic: the meta step has none.

        :param contents: of the checkpoint
        """
        return super().lacking_to_train(contents) if self.baseline == "critic" else []

    def _take_env_facts(self, env: MultiTaskVecEnv) -> None:
        super()._take_env_facts(env)
        if self.n_prior_episodes is not None:
            groups = env.family.dynamics_groups(np.stack(env.task_set("train")))
            self.groups_per_batch = -(-self.meta_batch_size * (int(groups.max()) + 1) // len(groups))

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one meta-iteration whose episodes are all as long as the horizon."""
        post = self.meta_batch_size * self.n_episodes
        before = post if self.n_prior_episodes is None else self.n_prior_episodes * self.groups_per_batch
        return (post + self.n_inner_steps * before) * self.n_steps

    # One meta-iteration

    def sample_tasks(self, rng: np.random.Generator) -> Tasks:
        """A batch of different training tasks.

        :param rng: source of the choice
        """
        assert self.env is not None
        training_tasks = self.env.task_set("train")
        if self.n_prior_episodes is None:
            ids = np.sort(rng.choice(len(training_tasks), self.meta_batch_size, replace=False))
        else:
            groups = self.env.family.dynamics_groups(np.stack(training_tasks))
            ids = sample_by_group(groups, self.meta_batch_size, rng)
        return Tasks(ids, [training_tasks[i] for i in ids])

    def _parameters(self) -> MetaParameters:
        """All meta-parameters; tasks that share episodes of the prior start from it, whatever they did before."""
        params = read_parameters(self._actor, self.task_latents)
        if self.n_prior_episodes is None:
            return params
        return replace(params, omega=DiagGaussian(*(th.zeros_like(part) for part in params.omega)))

    def _collect(self, collector: Collector, env: MultiTaskVecEnv) -> bool:
        """Before, between and after the inner updates."""
        rng = self._rng()
        tasks = self.sample_tasks(rng)
        params = self._parameters()
        self._meta_batch = collect_meta_batch(collector, self._plan, self._inner_spec, params, tasks, rng)
        if self._meta_batch is None:
            return False
        self._note_batch(self._meta_batch)
        return True

    @property
    def _plan(self) -> CollectionPlan:
        keep_steps = self.adapt_policy or self.inner_update == "reparameterised" or self.baseline == "critic"
        return CollectionPlan(self.n_inner_steps, self.n_episodes, self.n_prior_episodes, keep_steps)

    def _note_batch(self, batch: MetaBatch) -> None:
        """SB3's episode statistics are those of the post-update episodes."""
        self._note_episodes(batch.post.rollout.summary())
        self._episode_num += sum(summary.n_episodes for summary in batch.pre_summaries)
        for name, value in collection_record(batch).items():
            self.logger.record(name, value)

    def _objective(self, batch: MetaBatch) -> MetaObjective:
        """What the meta step maximises."""
        return MetaObjective(self._inner_spec, self._actor_function, batch, self.kl_coef, self.latent_kl_coef)

    def _candidate(self, params: MetaParameters, leaves: Sequence[th.Tensor]) -> MetaParameters:
        """The meta-parameters that other leaves make, inside their bounds and with what is not learned as it is."""
        new = params.with_leaves(leaves)
        new = replace(new, step_sizes=new.step_sizes.at_most(self.step_size_max, self.log_std_step_size_max))
        if self.n_prior_episodes is not None:  # shared episodes are the prior's: all tasks start from it
            new = replace(new, omega=params.omega)
        return new if self.learn_step_sizes else replace(new, step_sizes=params.step_sizes)

    def _evaluations(self, objective: MetaObjective, params: MetaParameters) -> list[Evaluate[ObjectiveValue]]:
        """The objective as functions of the leaves whose values add up."""

        def evaluate(tasks: slice, leaves: Sequence[th.Tensor]) -> ObjectiveValue:
            return objective(self._candidate(params, leaves), tasks)

        return [partial(evaluate, tasks) for tasks in objective.parts()]

    @property
    def _steps_left(self) -> float:
        """The part of all steps that was left when the iteration began; SB3 knows what is left when its episodes are
        played, which is nothing in the last one.
        """
        done = self._whole_timesteps or 0
        return 1.0 - done / self._total_timesteps if self._total_timesteps > done else 1.0

    def _meta_step(self, objective: MetaObjective, params: MetaParameters) -> StepResult:
        """One trust-region step on theta, the latents and the step sizes."""
        trust_region = self._trust_region(self._steps_left)
        self.logger.record("train/target_kl", trust_region.target_kl)
        stride = objective.stride(self.fisher_subsampling)

        def fisher_kl(tasks: slice, leaves: Sequence[th.Tensor]) -> Composition:
            return objective.fisher_kl(self._candidate(params, leaves), stride, tasks)

        return trust_region_step(
            self._evaluations(objective, params),
            [partial(fisher_kl, tasks) for tasks in objective.parts(stride)],
            params.leaves(),
            trust_region,
            seed=int(self._rng().integers(2**62)),
        )

    def train(self) -> None:
        """One meta step, then the critic's update."""
        assert self._meta_batch is not None
        started = time.perf_counter()
        self.policy.set_training_mode(True)
        batch, self._meta_batch = self._meta_batch, None
        params = self._parameters()
        result = self._meta_step(self._objective(batch), params)
        new = self._candidate(params, result.leaves)
        write_parameters(self._actor, self.task_latents, new)
        self.score_prior = None  # of the policy before the step
        if self.baseline == "critic":
            self._update_learning_rate(self.policy.optimizer)
            self.logger.record("train/value_loss", fit_critic(self.policy, batch, self.n_critic_updates))
        self._n_updates += 1
        self._whole_timesteps = self.num_timesteps
        for name, value in step_record(result, new, batch, self.inner_update).items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/train_seconds", time.perf_counter() - started)


def _cpu(device: th.device | str) -> str:
    """The CPU, which is what ``"auto"`` means here.

    :raises ValueError: for another device
    """
    if device != "auto" and get_device(device).type != "cpu":
        raise ValueError(f"expected device 'cpu' or 'auto', got {str(device)!r}: episodes and networks stay on the CPU")
    return "cpu"
