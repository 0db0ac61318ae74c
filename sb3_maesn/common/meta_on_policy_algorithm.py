"""The base of the on-policy meta-learners: collect, adapt, collect again, take one trust-region step."""

import copy
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.baselines import estimate_advantages
from sb3_maesn.common.adaptation import AdaptationResult, Agent, adapt_latents, make_rule
from sb3_maesn.common.adaptation_rules import AdaptationRule
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.env_util import as_multi_task
from sb3_maesn.common.files import write_atomically
from sb3_maesn.common.inner_update import InnerUpdate, inner_update, sample_z
from sb3_maesn.common.meta_objective import MetaObjective
from sb3_maesn.common.meta_parameters import TaskLatents, read_parameters, write_parameters
from sb3_maesn.common.policies import LatentActor, LatentActorCriticPolicy
from sb3_maesn.common.rollouts import Behaviour, StepHook, collect
from sb3_maesn.common.shared_episodes import dynamics_groups, sample_by_group, share_episodes
from sb3_maesn.common.trust_region import TrustRegion, trust_region_step
from sb3_maesn.common.type_aliases import (
    Adapted,
    MetaBatch,
    MetaParameters,
    NamedParameters,
    EpisodeBatch,
    ObjectiveValue,
    Rollout,
    StepResult,
    TaskBatch,
    Tasks,
    detached,
)
from sb3_maesn.envs.multi_task import MultiTaskVecEnv

SelfMetaOnPolicyAlgorithm = TypeVar("SelfMetaOnPolicyAlgorithm", bound="MetaOnPolicyAlgorithm")

BASELINES = ("linear", "critic")
REFERENCE_ITERATIONS = 300


class MetaOnPolicyAlgorithm(OnPolicyAlgorithm):
    """Meta-learning with a likelihood-ratio or reparameterised inner update and a TRPO meta step.

    One meta-iteration collects ``n_episodes`` episodes of each of ``meta_batch_size`` tasks before each of ``n_inner_steps`` inner updates
    and once after the last, then takes one trust-region step on all meta-parameters. All randomness of iteration i comes from the seed and
    i alone, so that a run that is saved, loaded and continued equals one that was never stopped.

    :param policy: ``"LatentMlpPolicy"`` or a subclass of LatentActorCriticPolicy
    :param env: an id of this package, a Gymnasium environment with tasks, or a VecEnv of such
    :param learning_rate: of the critic (used with ``baseline="critic"``)
    :param meta_batch_size: B, tasks of one iteration
    :param n_episodes: K, episodes of each task in each rollout
    :param n_prior_episodes: where given, every task's latent distribution before the inner update is the prior, and this many episodes of
        it are shared by all tasks of equal dynamics in place of pre-update episodes of their own (native environments only)
    :param balance_episodes: with ``n_prior_episodes`` and ``reward_weighted``, let the tasks divide the shared episodes evenly among
        them, so that the prior covers all tasks
    :param n_inner_steps: inner updates; 0 trains without adaptation
    :param inner_update: ``likelihood_ratio``, ``reparameterised`` or ``reward_weighted``
    :param adapt_policy: update theta in the inner update too (Eq. 4)
    :param first_order: stop the gradient through the inner gradients
    :param step_size_init: initial step size of the latents
    :param policy_step_size_init: initial step size of theta
    :param temperature_init: initial temperature of the reward-weighted update
    :param latent_mean_init_std: spread of the tasks' initial latent means
    :param inner_std_floor: least standard deviation by which the inner update normalises episode advantages
    :param kl_coef: weight of the KL between the tasks' latents and the prior
    :param latent_kl_coef: weight of the latents' own KL in the trust region
    :param target_kl: trust region, on the mean KL of the post-update action distributions
    :param gamma: discount factor
    :param gae_lambda: of the generalised advantages
    :param baseline: ``linear`` (fitted to each task's batch) or ``critic``
    :param n_critic_updates: epochs of the critic in each iteration
    :param cg_max_steps: conjugate-gradient iterations
    :param cg_damping: added to the Fisher matrix's diagonal
    :param line_search_shrinking_factor: by which a refused step is shortened
    :param line_search_max_iter: tries of the line search
    :param fisher_subsampling: the Fisher product uses every n-th time step
    :param stats_window_size: episodes over which ``rollout/*`` averages
    :param tensorboard_log: folder of the TensorBoard logs
    :param policy_kwargs: arguments of the policy
    :param verbose: 0, 1 or 2
    :param seed: of everything random
    :param device: only the CPU is tested
    :param _init_setup_model: whether to build the networks now
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LatentMlpPolicy": LatentActorCriticPolicy}
    policy: LatentActorCriticPolicy  # type: ignore[assignment]  # narrower than SB3's
    env: MultiTaskVecEnv | None  # type: ignore[assignment]

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
        policy_step_size_init: float = 0.1,
        temperature_init: float = 0.3,
        latent_mean_init_std: float = 1.0,
        inner_std_floor: float = 1e-8,
        kl_coef: float = 0.1,
        latent_kl_coef: float = 0.01,
        target_kl: float = 0.01,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        baseline: str = "linear",
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
        self.policy_step_size_init = policy_step_size_init
        self.temperature_init = temperature_init
        self.latent_mean_init_std = latent_mean_init_std
        self.inner_std_floor = inner_std_floor
        self.kl_coef = kl_coef
        self.latent_kl_coef = latent_kl_coef
        self.target_kl = target_kl
        self.baseline = baseline
        self.n_critic_updates = n_critic_updates
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.fisher_subsampling = fisher_subsampling
        self._check_settings()
        # every iteration's generator is seeded with (this, iteration)
        self.entropy = int(np.random.SeedSequence().entropy % 2**63) if seed is None else seed  # type: ignore[operator]
        self._meta_batch: MetaBatch | None = None
        self.adaptation: AdaptationResult | None = None
        self.policy_adaptation: list[float] = []
        if isinstance(env, str):
            env = as_multi_task(env, meta_batch_size * n_episodes)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # None is how SB3 loads a model without an environment
            learning_rate,
            n_steps=1,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=0.0,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    # ---------------------------------------------------------------- set-up

    def _check_settings(self) -> None:
        for name, least in (("meta_batch_size", 1), ("n_episodes", 2), ("n_inner_steps", 0), ("fisher_subsampling", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("step_size_init", "temperature_init", "target_kl"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {self.baseline!r}")
        spec = self._inner_spec
        if self.n_prior_episodes is not None and (
            self.n_prior_episodes < 2 or spec.adapt_policy or spec.estimator == "reparameterised" or self.n_inner_steps != 1
        ):
            raise ValueError(
                "n_prior_episodes must be at least 2 and goes with one inner step of the latents alone by likelihood_ratio or"
                f" reward_weighted, got n_prior_episodes={self.n_prior_episodes}, n_inner_steps={self.n_inner_steps},"
                f" inner_update={self.inner_update!r}, adapt_policy={self.adapt_policy}"
            )

    @property
    def _inner_spec(self) -> InnerUpdate:
        return InnerUpdate(
            self.inner_update, self.adapt_policy, self.first_order, self.inner_std_floor, self.balance_episodes
        )

    @property
    def _trust_region(self) -> TrustRegion:
        return TrustRegion(
            self.target_kl,
            self.cg_max_steps,
            self.cg_damping,
            self.line_search_shrinking_factor,
            self.line_search_max_iter,
        )

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Give any environment tasks: SB3's wrapping, then a MultiTaskVecEnv unless there is one already."""
        return as_multi_task(BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper), n_envs=1)

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self.env is not None:
            self._take_env_facts(self.env)
        if self.meta_batch_size > self.n_train_tasks:
            raise ValueError(
                f"meta_batch_size ({self.meta_batch_size}) must not exceed the number of training tasks ({self.n_train_tasks})"
            )
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs).to(  # type: ignore[assignment]
            self.device
        )
        if not isinstance(self.policy, LatentActorCriticPolicy):
            raise ValueError(f"expected a LatentActorCriticPolicy, got {self.policy_class.__name__}")
        self.rollout_buffer = None  # type: ignore[assignment]  # a MetaBatch takes its place, since the task axis must stay
        self._actor = self.policy.make_actor()
        self.task_latents = self._make_task_latents()

    def _make_task_latents(self) -> TaskLatents:
        adapted = dict(self._actor.named_parameters()) if self.adapt_policy else {}
        return TaskLatents(
            self.n_train_tasks,
            self.policy.latent_dim,
            adapted,
            self.latent_mean_init_std if self.n_prior_episodes is None else 0.0,
            self.step_size_init,
            self.policy_step_size_init,
            self.temperature_init,
            th.Generator().manual_seed(self.entropy),
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_actor", "_meta_batch", "adaptation", "policy_adaptation"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "task_latents"], []

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Replace the environment.

        :param env: an environment with the same spaces and number of training tasks
        :param force_reset: as in SB3
        :raises ValueError: if spaces or the number of training tasks differ
        """
        wrapped = self._wrap_env(env, self.verbose)
        assert isinstance(wrapped, MultiTaskVecEnv)
        self._take_env_facts(wrapped)
        super().set_env(wrapped, force_reset)

    def _take_env_facts(self, env: MultiTaskVecEnv) -> None:
        n_tasks = len(env.task_set("train"))
        if n_tasks != self.__dict__.setdefault("n_train_tasks", n_tasks):
            raise ValueError(f"expected an environment with {self.n_train_tasks} training tasks, got {n_tasks}")
        self.n_steps = env.horizon

    def check_spaces(self, env: VecEnv) -> None:
        """Refuse an environment whose spaces differ from those the policy was built for.

        :param env: the environment
        :raises ValueError: naming both spaces
        """
        check_for_correct_spaces(env, self.observation_space, self.action_space)

    # ---------------------------------------------------------------- one meta-iteration

    def _rng(self) -> np.random.Generator:
        """The generator of the current iteration: its collection and its step depend on nothing else."""
        return np.random.default_rng([self.entropy, self._n_updates])

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

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect the data of one meta-iteration: before, between and after the inner updates.

        :param env: the MultiTaskVecEnv
        :param callback: called at every environment step
        :param rollout_buffer: not used
        :param n_rollout_steps: not used; the environment's horizon decides
        :return: False if the callback ended the training
        """
        assert isinstance(env, MultiTaskVecEnv)
        started = time.perf_counter()
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        rng = self._rng()
        tasks = self.sample_tasks(rng)
        params = read_parameters(self._actor, self.task_latents)
        adapted = Adapted(DiagGaussian(params.latents.mean[tasks.ids], params.latents.log_std[tasks.ids]), None)
        pre: list[TaskBatch | EpisodeBatch] = []
        on_step = self._step_hook(env, callback)
        for _ in range(self.n_inner_steps):
            before = self._collect_before(env, tasks, params.policy, adapted, rng, on_step)
            if before is None:
                return False
            pre.append(before)
            adapted = detached(
                inner_update(self._inner_spec, self._actor_function, params.policy, params.step_sizes, adapted, before)
            )
        post = self._collect(env, tasks, params.policy, adapted, self.n_episodes, rng, on_step)
        if post is None:
            return False
        self._meta_batch = MetaBatch(tasks, tuple(pre), self._estimate_advantages(post))
        self._note_episodes(self._meta_batch, time.perf_counter() - started)
        callback.on_rollout_end()
        return True

    def _collect_before(
        self,
        env: MultiTaskVecEnv,
        tasks: Tasks,
        theta: NamedParameters,
        adapted: Adapted,
        rng: np.random.Generator,
        on_step: StepHook,
    ) -> TaskBatch | EpisodeBatch | None:
        """What an inner update learns from: each task's own episodes, or those of the prior that tasks share."""
        if self.n_prior_episodes is None:
            rollout = self._collect(env, tasks, theta, adapted, self.n_episodes, rng, on_step)
            return None if rollout is None else self._estimate_advantages(rollout)
        groups, first = dynamics_groups(env, tasks)
        prior = th.zeros(len(first.values), self.policy.latent_dim)
        bank = self._collect(env, first, theta, Adapted(DiagGaussian(prior, prior), None), self.n_prior_episodes, rng, on_step)
        return None if bank is None else share_episodes(env, tasks, groups, bank, self.gamma)

    def _collect(
        self,
        env: MultiTaskVecEnv,
        tasks: Tasks,
        theta: NamedParameters,
        adapted: Adapted,
        n_episodes: int,
        rng: np.random.Generator,
        on_step: StepHook | None,
    ) -> Rollout | None:
        shape = (len(tasks.values), n_episodes, self.policy.latent_dim)
        noise = th.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        behaviour = Behaviour(self.policy, self._actor_function, theta, adapted, noise, sample_z(adapted.latents, noise))
        return collect(env, tasks.values, behaviour, rng, on_step)

    def _actor_function(self, theta: NamedParameters, observations: th.Tensor, latents: th.Tensor) -> Any:
        return th.func.functional_call(self._actor, theta, (observations, latents))

    def _step_hook(self, env: VecEnv, callback: BaseCallback) -> StepHook:
        def on_step(variables: dict[str, Any]) -> bool:
            self.num_timesteps += env.num_envs
            callback.update_locals({"self": self, "env": env, **variables})
            return callback.on_step()

        return on_step

    def _estimate_advantages(self, rollout: Rollout) -> TaskBatch:
        critic = self._critic_values if self.baseline == "critic" else None
        return estimate_advantages(rollout, self.gamma, self.gae_lambda, critic)

    def _critic_values(self, rollout: Rollout) -> th.Tensor:
        """The critic's values (T, B, K), with their graph where gradients are enabled."""
        observations = rollout.observations.flatten(0, 2)
        latents = rollout.latents.expand(rollout.rewards.shape[0], *rollout.latents.shape).flatten(0, 2)
        features = self.policy._conditioned(observations, latents, self.policy.vf_features_extractor)
        values: th.Tensor = self.policy.value_net(self.policy.mlp_extractor.forward_critic(features))
        return values.view(rollout.rewards.shape).detach() if not th.is_grad_enabled() else values.view(rollout.rewards.shape)

    def train(self) -> None:
        """One trust-region step on theta, the latents and the step sizes, then the critic's update."""
        assert self._meta_batch is not None
        started = time.perf_counter()
        self.policy.set_training_mode(True)
        params = read_parameters(self._actor, self.task_latents)
        objective = MetaObjective(self._inner_spec, self._actor_function, self._meta_batch, self.kl_coef, self.latent_kl_coef)

        def evaluate(leaves: Any) -> ObjectiveValue:
            return objective(params.with_leaves(leaves))

        def fisher_kl(leaves: Any) -> th.Tensor:
            return objective.fisher_kl(params.with_leaves(leaves), self.fisher_subsampling)

        solver_seed = int(self._rng().integers(2**62))
        result = trust_region_step(evaluate, fisher_kl, params.leaves(), self._trust_region, solver_seed)
        new = params.with_leaves(result.leaves)
        if self.n_prior_episodes is not None:  # shared episodes are the prior's: all tasks start from it
            new = replace(new, latents=params.latents)
        write_parameters(self._actor, self.task_latents, new)
        if self.baseline == "critic":
            self._train_critic(self._meta_batch)
        self._n_updates += 1
        self._log_step(result, new, self._meta_batch, time.perf_counter() - started)
        self._meta_batch = None

    def _train_critic(self, meta_batch: MetaBatch) -> None:
        """Full-batch regression of the critic on the discounted returns of all rollouts."""
        self._update_learning_rate(self.policy.optimizer)
        losses = []
        for _ in range(self.n_critic_updates):
            for batch in self._whole_batches(meta_batch):
                errors = (self._critic_values(batch.rollout) - batch.discounted_returns).square() * batch.rollout.mask
                loss = errors.sum() / batch.rollout.mask.sum().clamp(min=1.0)
                self.policy.optimizer.zero_grad()
                critic = self.policy.critic_parameters()
                for parameter, gradient in zip(critic, th.autograd.grad(loss, critic), strict=True):
                    parameter.grad = gradient
                self.policy.optimizer.step()
                losses.append(loss.item())
        self.logger.record("train/value_loss", float(np.mean(losses)))

    @staticmethod
    def _whole_batches(meta_batch: MetaBatch) -> list[TaskBatch]:
        return [batch for batch in (*meta_batch.pre, meta_batch.post) if isinstance(batch, TaskBatch)]

    # ---------------------------------------------------------------- logs

    def _note_episodes(self, meta_batch: MetaBatch, seconds: float) -> None:
        """Post-update episodes go where SB3 keeps its episode statistics."""
        assert self.ep_info_buffer is not None and self.ep_success_buffer is not None
        post = meta_batch.post.rollout
        now = round(time.time() - self.start_time / 1e9, 6)
        for episode_return, length in zip(post.returns.flatten().tolist(), post.lengths.flatten().tolist(), strict=True):
            self.ep_info_buffer.append({"r": episode_return, "l": length, "t": now})
        self.ep_success_buffer.extend(post.success[~np.isnan(post.success)].tolist())
        self._episode_num += post.success.size * (len(meta_batch.pre) + 1)
        batches = self._whole_batches(meta_batch)
        for batch in batches[:1] if len(batches) > 1 else []:
            self.logger.record("rollout/pre_ep_rew_mean", batch.rollout.returns.mean().item())
            if not np.isnan(batch.rollout.success).all():
                self.logger.record("rollout/pre_success_rate", float(np.nanmean(batch.rollout.success)))
        diverged = sum(batch.rollout.n_diverged for batch in batches)
        self.logger.record("rollout/n_diverged", diverged)
        self.logger.record("time/collect_seconds", seconds)

    def _log_step(self, result: StepResult, params: MetaParameters, meta_batch: MetaBatch, seconds: float) -> None:
        after, steps = result.after, params.step_sizes
        record = self.logger.record
        record("train/surrogate", after.surrogate.item())
        record("train/kl_divergence", after.kl.item())
        record("train/prior_kl", after.prior_kl.item())
        record("train/is_line_search_success", float(result.accepted))
        record("train/n_backtracks", result.n_backtracks)
        record("train/explained_variance", meta_batch.post.explained_variance)
        if "log_std" in params.policy:
            record("train/std", params.policy["log_std"].exp().mean().item())
        if self.policy.latent_dim > 0:
            record("train/latent_std", params.latents.log_std.exp().mean().item())
            record("train/latent_mean_norm", params.latents.mean.norm(dim=-1).mean().item())
            record("train/step_size_mean", steps.mean.mean().item())
            record("train/step_size_log_std", steps.log_std.mean().item())
        if self.inner_update == "reward_weighted":
            record("train/temperature", steps.log_temperature.exp().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("time/train_seconds", seconds)

    # ---------------------------------------------------------------- adaptation

    def agent(self) -> Agent:
        """What adaptation needs of this model, as values."""
        params = read_parameters(self._actor, self.task_latents)
        return Agent(self.policy, self._actor_function, params.policy, params.step_sizes, self.gamma, self.gae_lambda)

    def adapt(
        self: SelfMetaOnPolicyAlgorithm,
        env: GymEnv | str | None = None,
        task: Any = None,
        n_rounds: int = 3,
        n_episodes: int = 50,
        rule: str | AdaptationRule | None = None,
        n_policy_rounds: int = 0,
        seed: int = 0,
    ) -> SelfMetaOnPolicyAlgorithm:
        """Adapt to one task.

        The latent distribution is adapted first, by ``rule``, then theta for ``n_policy_rounds`` rounds by trust-region policy gradient.

        :param env: where the task is set: an id, a Gymnasium environment or a VecEnv; the model's own where None
        :param task: whatever ``set_task`` takes
        :param n_rounds: updates of the latent distribution
        :param n_episodes: episodes of each round
        :param rule: a name of ``RULES``, a rule, or None for the default
        :param n_policy_rounds: updates of theta after those
        :param seed: of everything random here
        :return: a new model whose ``predict`` draws from the adapted latent distribution, and whose ``adaptation`` is the history; this
            model stays as it was
        :raises ValueError: if no task is given, or the environment refuses it
        """
        if task is None:
            raise ValueError("expected a task (whatever the environment's set_task takes), got None")
        if env is None and self.env is None:
            raise ValueError("expected an environment, got none: pass env")
        venv = as_multi_task(env if env is not None else self.env, n_episodes, [task])  # type: ignore[arg-type]  # not None here
        self.check_spaces(venv)
        agent, rng = self.agent(), np.random.default_rng(seed)
        history, (mean, log_std) = adapt_latents(
            agent, venv, [task], make_rule(rule, agent.step_sizes), n_rounds, n_episodes, rng, last_round=False
        )
        adapted = self._copy()
        adapted.policy.set_latent_distribution(mean[0], log_std[0])
        adapted.adaptation = history
        adapted.policy_adaptation = [adapted._improve_policy(venv, task, n_episodes, rng) for _ in range(n_policy_rounds)]
        if isinstance(env, str):
            venv.close()
        return adapted

    def _copy(self: SelfMetaOnPolicyAlgorithm) -> SelfMetaOnPolicyAlgorithm:
        """A model with networks of its own that shares this one's environment."""
        other = copy.copy(self)
        other.policy = copy.deepcopy(self.policy)
        other.task_latents = copy.deepcopy(self.task_latents)
        other._actor = other.policy.make_actor()
        other.ep_info_buffer, other.ep_success_buffer = copy.copy(self.ep_info_buffer), copy.copy(self.ep_success_buffer)
        return other

    def _improve_policy(self, env: MultiTaskVecEnv, task: Any, n_episodes: int, rng: np.random.Generator) -> float:
        """One trust-region step of theta on one task with the latent distribution fixed; the mean return before it."""
        params = read_parameters(self._actor, self.task_latents)
        latents = DiagGaussian(self.policy.latent_mean[None], self.policy.latent_log_std[None])
        params = replace(params, latents=latents)
        tasks, adapted = Tasks(np.zeros(1, dtype=np.int64), [task]), Adapted(latents, None)
        rollout = self._collect(env, tasks, params.policy, adapted, n_episodes, rng, None)
        assert rollout is not None
        objective = MetaObjective(
            self._inner_spec, self._actor_function, MetaBatch(tasks, (), self._estimate_advantages(rollout)), kl_coef=0.0
        )

        def with_theta(leaves: Sequence[th.Tensor]) -> MetaParameters:
            return replace(params, policy=dict(zip(params.policy, leaves, strict=True)))

        theta = list(params.policy.values())
        result = trust_region_step(
            lambda leaves: objective(with_theta(leaves)),
            lambda leaves: objective.fisher_kl(with_theta(leaves), self.fisher_subsampling),
            theta,
            self._trust_region,
            int(rng.integers(2**62)),
        )
        own = read_parameters(self._actor, self.task_latents)
        write_parameters(self._actor, self.task_latents, replace(own, policy=with_theta(result.leaves).policy))
        return rollout.returns.mean().item()

    # ---------------------------------------------------------------- SB3's surface

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as SB3 does, but atomically: an interrupted save leaves the old file whole.

        :param path: file, or something to write to
        :param exclude: as in SB3
        :param include: as in SB3
        """
        if isinstance(path, io.BufferedIOBase):
            super().save(path, exclude, include)
            return
        target = Path(path)
        target = target.with_suffix(".zip") if target.suffix == "" else target
        sb3_save = super().save
        write_atomically(target, lambda file: sb3_save(file, exclude, include))  # type: ignore[arg-type]  # a BufferedWriter

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one meta-iteration whose episodes are all as long as the horizon."""
        post = self.meta_batch_size * self.n_episodes
        before = post if self.n_prior_episodes is None else self.n_prior_episodes
        return (post + self.n_inner_steps * before) * self.n_steps

    def learn(
        self: SelfMetaOnPolicyAlgorithm,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MetaOnPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMetaOnPolicyAlgorithm:
        """Meta-train.

        :param total_timesteps: environment steps, rounded up to whole meta-iterations; the paper's 300 iterations where None
        :param callback: as in SB3
        :param log_interval: iterations between logs
        :param tb_log_name: name of the TensorBoard run
        :param reset_num_timesteps: False continues a run
        :param progress_bar: show one
        :return: the trained model
        """
        if self.env is None:
            raise ValueError("expected an environment to learn from, got none: call set_env first")
        if total_timesteps is None:
            total_timesteps = REFERENCE_ITERATIONS * self.timesteps_per_iteration
        if reset_num_timesteps:
            self._n_updates = 0
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
