"""What a run measures beside the Hessian: behaviour and circuits at snapshots, causes at checkpoints.

Every function leaves the model and all random state as it found them.
"""

from spectral.training.measure.causes import CausalMeter
from spectral.training.measure.evaluating import evaluating
from spectral.training.measure.meter import ProbeMeter
from spectral.training.measure.plan import ProbePlan
from spectral.training.measure.yardsticks import causal_attributes, probe_attributes

__all__ = ["CausalMeter", "ProbeMeter", "ProbePlan", "causal_attributes", "evaluating", "probe_attributes"]
