"""Is a loss far above those of late? Told by a moving mean and deviation, which a checkpoint keeps."""

import math

DECAY = 0.98  # of the moving mean: about fifty steps
WARM = 50  # losses before anything is a spike
LIMIT = 6.0  # deviations above the mean
LEAST = 0.05  # share of the mean that a deviation counts at least, where losses hardly vary


class LossSpikes:
    """The losses of a run, one after the other."""

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is one; then it is counted among those of late."""
        deviation = max(math.sqrt(self.variance), LEAST * abs(self.mean))
        spike = self.count >= WARM and loss - self.mean > LIMIT * deviation
        decay = min(DECAY, self.count / (self.count + 1))  # a plain mean at first
        distance = loss - self.mean
        self.mean += (1 - decay) * distance
        self.variance = decay * (self.variance + (1 - decay) * distance**2)
        self.count += 1
        return spike

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)
