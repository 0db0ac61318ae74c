"""Progress bar for collections in which some members of the environment are idle."""

from stable_baselines3.common.callbacks import ProgressBarCallback


class StepsProgressBar(ProgressBarCallback):
    """SB3's progress bar, advanced by the change of ``num_timesteps``.

    SB3's own adds ``num_envs`` at every step, although not all members may take part in it.
    """

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._start = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self._start - self.pbar.n)
        return True
