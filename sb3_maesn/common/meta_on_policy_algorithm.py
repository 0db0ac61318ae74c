"""Base class of the on-policy meta-learners: collect, adapt, collect again, take one trust-region step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

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
from sb3_maesn.common.type_aliases import MetaBatch, MetaParameters, ObjectiveValue, StepResult, StepSizes, Tasks
from sb3_maesn.envs.multi_task import MultiTaskVecEnv


class MetaOnPolicyAlgorithm(AdaptableAlgorithm):
    """Meta-RL algorithm with an inner update of the latents (and optionally the policy) and a TRPO meta step.

    One meta-iteration collects ``n_episodes`` episodes of each of ``meta_batch_size`` tasks before each of
    ``n_inner_steps`` inner updates and once more after the last. It then takes one trust-region step on all
    meta-parameters: theta, the latent distributions of the training tasks, and the step sizes. Equations refer to
    Gupta et al. 2018 (arXiv:1802.07245). Resumes exactly (see :class:`EpisodicAlgorithm`).

    :param policy: policy class, or its alias ``"LatentMlpPolicy"``; a class must derive from LatentActorCriticPolicy
    :param env: environment id of this package, Gymnasium environment with tasks, or VecEnv of such environments
    :param learning_rate: learning rate of the critic (used with ``baseline="critic"``)
    :param meta_batch_size: number of tasks in one iteration (B)
    :param n_episodes: number of episodes of each task in each rollout (K)
    :param n_prior_episodes: number of episodes drawn from the prior in place of each task's own pre-update episodes.
        All tasks with the same dynamics share them, and every task's latent distribution before the inner update is
        then the prior. Works with the batched environments of this package only; None turns it off
    :param balance_episodes: whether the tasks divide the latents of the shared episodes evenly among themselves, so
        that the prior covers all tasks; needs ``n_prior_episodes`` and the inner update ``reward_weighted``
    :param n_inner_steps: number of inner updates; 0 trains without adaptation
    :param inner_update: estimator of the inner update: ``likelihood_ratio``, ``reparameterised`` or
        ``reward_weighted``
    :param adapt_policy: whether the inner update changes theta too (Eq. 4)
    :param first_order: whether to stop the meta-gradient at the inner gradients; a reward-weighted update then keeps
        its initial temperature
    :param step_size_init: initial inner step size of the latent mean and log std
    :param step_size_max: upper bound on the step sizes of the latents, which also lowers a larger ``step_size_init``;
        None for no bound. Longer steps let tasks settle outside the bulk of the prior, where adaptation from sparse
        reward never finds them
    :param log_std_step_size_max: upper bound on the step sizes of the log std, in place of ``step_size_max``.
        Dense reward makes these step sizes too long for several rounds of sparse reward, in which the gradient grows
        with 1 / std^2
    :param learn_step_sizes: whether to learn the step sizes and the temperature
    :param policy_step_size_init: initial inner step size of theta
    :param temperature_init: initial temperature of the reward-weighted update
    :param latent_mean_init_std: standard deviation from which the tasks' initial latent means are drawn
    :param inner_std_floor: smallest standard deviation by which the inner update normalises episode advantages
    :param kl_coef: weight of the KL from the tasks' latent distributions to the prior (Eq. 2)
    :param latent_kl_coef: weight of the KL between old and new latent distributions in the trust region
    :param target_kl: size of the trust region: the largest mean KL between old and new post-update action
        distributions. A schedule receives the fraction of all training steps that remains at the start of the
        iteration; steps of earlier calls of ``learn`` count towards the total
    :param gamma: discount factor
    :param gae_lambda: lambda of generalised advantage estimation
    :param baseline: value baseline: ``linear`` (fitted to each task's batch) or ``critic``
    :param baseline_ridge: ridge coefficient of the linear baseline; a larger one suits few episodes and large
        observations
    :param n_critic_updates: number of epochs of the critic in each iteration
    :param cg_max_steps: number of conjugate-gradient iterations
    :param cg_damping: damping added to the diagonal of the Fisher matrix
    :param line_search_shrinking_factor: factor by which the line search shortens a rejected step
    :param line_search_max_iter: largest number of step lengths that the line search tries
    :param fisher_subsampling: stride in time steps at which Fisher-vector products are computed; reduced where a
        task's mean episode would keep fewer than ten steps
    :param stats_window_size: number of episodes over which ``rollout/*`` averages
    :param tensorboard_log: folder for TensorBoard logs, None for none
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: verbosity level: 0 for none, 1 for info, 2 for debug
    :param seed: seed of all randomness, None for a random one
    :param device: torch device, ``"cpu"`` or ``"auto"``; both mean the CPU, since the networks are small and the
        physics runs there
    :param _init_setup_model: whether to build the networks in the constructor
    :raises ValueError: if a setting is out of range, or the environment or the policy is unsuitable
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LatentMlpPolicy": LatentActorCriticPolicy}
    checkpoint_progress = (*AdaptableAlgorithm.checkpoint_progress, "groups_per_batch")
    #: Arguments that define the algorithm, each with the only value it allows.
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
        self.groups_per_batch = 1  # groups of tasks with the same dynamics, each of which shares its prior episodes
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
            device,
            _init_setup_model,
        )

    # Set-up

    def _check_settings(self) -> None:
        check_types(vars(self), type(self), NUMBERS)
        check_fixed(vars(self), self.fixed_settings, type(self).__name__)
        check_settings(vars(self))
        _ = self._inner_spec  # constructed for its check: InnerUpdate raises if the estimator is unknown

    @property
    def _inner_spec(self) -> InnerUpdate:
        """The inner update that the settings describe."""
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
        self._check_origin()
        self._check_settings()
        super()._setup_model()
        if self.meta_batch_size > self.n_train_tasks:
            raise ValueError(
                f"meta_batch_size ({self.meta_batch_size}) must not exceed the number of training tasks"
                f" ({self.n_train_tasks})"
            )
        self.task_latents = self._make_task_latents()

    def _make_task_latents(self) -> TaskLatents:
        latents = TaskLatents(
            self.n_train_tasks,
            self.policy.latent_dim,
            dict(self._actor.named_parameters()) if self.adapt_policy else {},
            self.latent_mean_init_std if self.n_prior_episodes is None else 0.0,
            self.step_size_init,
            self.policy_step_size_init,
            self.temperature_init,
            th.Generator().manual_seed(self.entropy),
        )
        bounded = self._bounded(latents.step_sizes())
        with th.no_grad():
            latents.mean_step.copy_(bounded.mean)
            latents.log_std_step.copy_(bounded.log_std)
        return latents

    def _bounded(self, step_sizes: StepSizes) -> StepSizes:
        """Clamp the step sizes of the latents to their upper bounds."""
        return step_sizes.at_most(self.step_size_max, self.log_std_step_size_max)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_meta_batch", "adaptation", "policy_adaptation"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "task_latents"], []

    def parts_to_reinitialise(self, contents: str) -> list[str]:
        """List the parts that training has to start afresh: the critic's optimiser, if the baseline is a critic.

        The trust-region meta step has no optimiser state.

        :param contents: kind of checkpoint, ``"training"`` or ``"agent"``
        :return: names of the missing parts
        """
        return super().parts_to_reinitialise(contents) if self.baseline == "critic" else []

    def _note_env_facts(self, env: MultiTaskVecEnv) -> None:
        if self.n_prior_episodes is not None:
            family = env.family  # raises an error for an environment of another kind
            if not env.shares_episodes:
                raise ValueError(
                    "n_prior_episodes needs a task family whose observations determine the reward"
                    f" (TaskFamily.state_of), got {family.env_id}"
                )
        super()._note_env_facts(env)
        if self.n_prior_episodes is not None:
            groups = env.family.dynamics_groups(np.stack(env.task_set("train")))
            self.groups_per_batch = -(-self.meta_batch_size * (int(groups.max()) + 1) // len(groups))

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one meta-iteration in which every episode lasts for the whole horizon."""
        post = self.meta_batch_size * self.n_episodes
        before = post if self.n_prior_episodes is None else self.n_prior_episodes * self.groups_per_batch
        return (post + self.n_inner_steps * before) * self.n_steps

    # One meta-iteration

    def sample_tasks(self, rng: np.random.Generator) -> Tasks:
        """Sample a meta-batch of distinct training tasks.

        With shared prior episodes, the tasks come from as few groups of equal dynamics as possible.

        :param rng: random generator
        :return: B tasks, sorted by their index in the training set
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
        """Read all meta-parameters; with shared prior episodes, every latent distribution is the prior."""
        params = read_parameters(self._actor, self.task_latents)
        if self.n_prior_episodes is None:
            return params
        return replace(params, omega=DiagGaussian(*(th.zeros_like(part) for part in params.omega)))

    def _collect(self, collector: Collector) -> bool:
        """Collect the meta-batch: the rollouts before each inner update and after the last one."""
        rng = self._rng()
        tasks = self.sample_tasks(rng)
        params = self._parameters()
        self._meta_batch = collect_meta_batch(collector, self._collection_plan, self._inner_spec, params, tasks, rng)
        if self._meta_batch is None:
            return False
        self._note_batch(self._meta_batch)
        return True

    @property
    def _collection_plan(self) -> CollectionPlan:
        """The rollouts of one meta-iteration."""
        keep_steps = self.adapt_policy or self.inner_update == "reparameterised" or self.baseline == "critic"
        return CollectionPlan(self.n_inner_steps, self.n_episodes, self.n_prior_episodes, keep_steps)

    def _note_batch(self, batch: MetaBatch) -> None:
        """Log a meta-batch; SB3's episode statistics are those of the post-update episodes."""
        self._note_episodes(batch.post.rollout.summary())
        self._episode_num += sum(summary.n_episodes for summary in batch.pre_summaries)
        for name, value in collection_record(batch).items():
            self.logger.record(name, value)

    def _objective(self, batch: MetaBatch) -> MetaObjective:
        """Build the objective that the meta step maximises."""
        return MetaObjective(self._inner_spec, self._actor_function, batch, self.kl_coef, self.latent_kl_coef)

    def _candidate(self, params: MetaParameters, leaves: Sequence[th.Tensor]) -> MetaParameters:
        """Replace the leaves of the meta-parameters, within bounds and without changing what is not learned.

        :param params: current meta-parameters
        :param leaves: new values of the leaves of ``params``
        :return: the new meta-parameters
        """
        new = params.with_leaves(leaves)
        new = replace(new, step_sizes=self._bounded((new if self.learn_step_sizes else params).step_sizes))
        if self.n_prior_episodes is not None:  # all tasks start from the prior, from which their episodes were drawn
            new = replace(new, omega=params.omega)
        return new

    def _evaluations(self, objective: MetaObjective, params: MetaParameters) -> list[Evaluate[ObjectiveValue]]:
        """Split the objective into functions of the leaves, one for each part of the tasks, whose values add up."""

        def evaluate(tasks: slice, leaves: Sequence[th.Tensor]) -> ObjectiveValue:
            return objective(self._candidate(params, leaves), tasks)

        return [partial(evaluate, tasks) for tasks in objective.parts()]

    @property
    def _remaining_at_start(self) -> float:
        """Fraction of all training steps that remained when the current iteration began.

        SB3's ``_current_progress_remaining`` counts the iteration's own episodes as done: it is 0 in the last one.
        """
        done = self._whole_timesteps or 0
        return 1.0 - done / self._total_timesteps if self._total_timesteps > done else 1.0

    def _meta_step(self, objective: MetaObjective, params: MetaParameters) -> StepResult:
        """Take one trust-region step on theta, the latent distributions and the step sizes."""
        trust_region = self._trust_region(self._remaining_at_start)
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
        """Take one meta step on the collected meta-batch, then update the critic if there is one."""
        assert self._meta_batch is not None
        started = time.perf_counter()
        batch, self._meta_batch = self._meta_batch, None
        params = self._parameters()
        result = self._meta_step(self._objective(batch), params)
        new = self._candidate(params, result.leaves)
        write_parameters(self._actor, self.task_latents, new)
        self.score_prior = None  # it described the policy before this step
        if self.baseline == "critic":
            self._update_learning_rate(self.policy.optimizer)
            self.logger.record("train/value_loss", fit_critic(self.policy, batch, self.n_critic_updates))
        self._n_updates += 1
        self._whole_timesteps = self.num_timesteps
        for name, value in step_record(result, new, batch, self.inner_update).items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/train_seconds", time.perf_counter() - started)
