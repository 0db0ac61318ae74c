"""Log entries of a meta-iteration, named as in SB3 where it has a name for them."""

import numpy as np

from sb3_maesn.common.type_aliases import EpisodeBatch, MetaBatch, MetaParameters, StepResult


def collection_record(batch: MetaBatch) -> dict[str, float]:
    """Compute the log entries for the collected episodes.

    Post-update episodes are logged through SB3's own statistics.

    :param batch: data of the meta-iteration
    :return: values by their keys in the log
    """
    n_diverged = batch.post.rollout.n_diverged + sum(summary.n_diverged for summary in batch.pre_summaries)
    record = {"rollout/n_diverged": float(n_diverged)}
    shared = any(isinstance(pre, EpisodeBatch) and pre.groups is not None for pre in batch.pre)
    if shared or not batch.pre_summaries:  # shared episodes have returns of one task of each group only
        return record
    first = batch.pre_summaries[0]
    if first.returns.size:
        record["rollout/pre_ep_rew_mean"] = float(first.returns.mean())
    if first.success.size:
        record["rollout/pre_success_rate"] = float(first.success.mean())
    return record


def step_record(result: StepResult, params: MetaParameters, batch: MetaBatch, inner_update: str) -> dict[str, float]:
    """Compute the log entries for the meta step.

    :param result: outcome of the step
    :param params: meta-parameters after the step
    :param batch: data of the meta-iteration
    :param inner_update: estimator of the latents' inner update
    :return: values by their keys in the log
    """
    after, step_sizes = result.after, params.step_sizes
    record = {
        "train/surrogate": after.surrogate.item(),
        "train/kl_divergence": after.kl.item(),
        "train/prior_kl": after.prior_kl.item(),
        "train/explained_variance": batch.post.explained_variance,
    }
    if result.n_backtracks is not None:
        record["train/is_line_search_success"] = float(result.accepted)
        record["train/n_backtracks"] = float(result.n_backtracks)
    if "log_std" in params.theta:
        record["train/std"] = params.theta["log_std"].exp().mean().item()
    if step_sizes.mean.numel() > 0:
        record["train/latent_std"] = params.omega.log_std.exp().mean().item()
        record["train/latent_mean_norm"] = params.omega.mean.norm(dim=-1).mean().item()
        record["train/step_size_mean"] = step_sizes.mean.mean().item()
        record["train/step_size_log_std"] = step_sizes.log_std.mean().item()
    if inner_update == "reward_weighted":
        record["train/temperature"] = step_sizes.log_temperature.exp().item()
    if step_sizes.theta:
        means = [step_size.mean().item() for step_size in step_sizes.theta.values()]
        record["train/step_size_policy"] = float(np.mean(means))
    return record
