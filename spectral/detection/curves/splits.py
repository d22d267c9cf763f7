"""Which curve families teach the detector, and which ones only judge it.

Split by family, not by curve: thresholds and interval factors are learnt on the calibration families alone, so rates
on the test families say what to expect of a kind of curve that was never seen.
"""

from spectral.detection.curves.families import ABRUPT, NULL, Family
from spectral.detection.curves.training_curves import TRAINING_ABRUPT, TRAINING_NULL

ALL_NULL: dict[str, Family] = NULL | TRAINING_NULL
ALL_ABRUPT: dict[str, Family] = ABRUPT | TRAINING_ABRUPT

CALIBRATION_NULL = (
    "exponential",
    "line",
    "slow_sigmoid",
    "noise",
    "persistent_noise",
    "random_walk",
    "spikes",
    "slope_kink",
    "stretched",
    "smoothed_walk",
    "jumping_walk",
    "pareto_walk",
    "heavy_noise",
    "gradual",
    "shrinking_noise",
)
TEST_NULL = tuple(name for name in ALL_NULL if name not in CALIBRATION_NULL)

CALIBRATION_ABRUPT = (
    "step",
    "step_after_exponential",
    "step_with_outliers",
    "skewed_accuracy",
    "overshoot",
    "smooth_ramp",
    "relaxing_drop",
    "late_rise",
    "noise_shift_step",
    "unsettled_step",
    "jittered_step",
    "burst_step",
)
TEST_ABRUPT = tuple(name for name in ALL_ABRUPT if name not in CALIBRATION_ABRUPT)
