"""A spike is what stands out from the losses of late, and nothing else is."""

import random

from semmae.runs.loss_spikes import WARM, LossSpikes


def falling(steps: int) -> list[float]:
    """A loss that falls as losses do, with some noise."""
    noise = random.Random(0)
    return [1 + 2 / (1 + step / 20) + noise.gauss(0, 0.02) for step in range(steps)]


def test_a_loss_that_falls_has_no_spikes_and_a_jump_is_one():
    losses = LossSpikes()
    assert not any(losses.is_spike(loss) for loss in falling(400))
    assert losses.is_spike(3.0)
    assert not losses.is_spike(1.1)


def test_nothing_is_a_spike_before_the_losses_are_known():
    losses = LossSpikes()
    assert not any(losses.is_spike(loss) for loss in [1.0] * (WARM - 1) + [100.0])


def test_a_loss_that_hardly_varies_may_vary_a_little():
    losses = LossSpikes()
    for _ in range(WARM):
        losses.is_spike(1.0)
    assert not losses.is_spike(1.2)
    assert losses.is_spike(2.0)


def test_a_checkpoint_keeps_what_was_known():
    losses, again = LossSpikes(), LossSpikes()
    for loss in falling(100):
        losses.is_spike(loss)
    again.load_state_dict(losses.state_dict())
    assert [losses.is_spike(loss) for loss in (1.1, 9.0, 1.1)] == [again.is_spike(loss) for loss in (1.1, 9.0, 1.1)]
    assert losses.state_dict() == again.state_dict()
