"""A progress bar that counts what ``num_timesteps`` counts."""

from stable_baselines3.common.callbacks import ProgressBarCallback


class StepsProgressBar(ProgressBarCallback):
    """SB3's progress bar, for collections in which not all members take part in every step."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._start = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self._start - self.pbar.n)
        return True
