"""Learning rate as a function of the step, so that nothing about it has to be saved."""

import math

FINAL_SHARE = 0.1


def learning_rate(step: int, *, lr: float, num_steps: int, use_schedule: bool, warmup_steps: int) -> float:
    """Return the learning rate of the update that follows `step` completed ones.

    With a schedule: linear warm-up from lr / warmup_steps to lr, then half a cosine down to 10 % of lr at num_steps.
    """
    if not use_schedule:
        return lr
    warmup = min(warmup_steps, num_steps)
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return lr * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
