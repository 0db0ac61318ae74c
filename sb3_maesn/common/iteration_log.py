"""What is logged of a meta-iteration, under SB3's names where it has one."""

import numpy as np

from sb3_maesn.common.type_aliases import EpisodeBatch, MetaBatch, MetaParameters, StepResult


def collection_record(batch: MetaBatch) -> dict[str, float]:
    """Of the episodes; those after the inner updates are in SB3's own episode statistics.

    :param batch: the meta-iteration's data
    """
    n_diverged = batch.post.rollout.n_diverged + sum(summary.n_diverged for summary in batch.pre_summaries)
    record = {"rollout/n_diverged": float(n_diverged)}
    shared = any(isinstance(pre, EpisodeBatch) and pre.groups is not None for pre in batch.pre)
    if shared or not batch.pre_summaries:  # the returns of shared episodes are those of one task only
        return record
    first = batch.pre_summaries[0]
    if first.returns.size:
        record["rollout/pre_ep_rew_mean"] = float(first.returns.mean())
    if first.success.size:
        record["rollout/pre_success_rate"] = float(first.success.mean())
    return record


def step_record(result: StepResult, params: MetaParameters, batch: MetaBatch, inner_update: str) -> dict[str, float]:
    """Of the meta step.

    :param result: what the step did
    :param params: the meta-parameters after it
    :param batch: the meta-iteration's data
    :param inner_update: name of the inner update
    """
    after, steps = result.after, params.step_sizes
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
    if steps.mean.numel() > 0:
        record["train/latent_std"] = params.omega.log_std.exp().mean().item()
        record["train/latent_mean_norm"] = params.omega.mean.norm(dim=-1).mean().item()
        record["train/step_size_mean"] = steps.mean.mean().item()
        record["train/step_size_log_std"] = steps.log_std.mean().item()
    if inner_update == "reward_weighted":
        record["train/temperature"] = steps.log_temperature.exp().item()
    if steps.theta:
        record["train/step_size_policy"] = float(np.mean([step.mean().item() for step in steps.theta.values()]))
    return record
