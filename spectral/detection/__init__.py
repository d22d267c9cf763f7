"""Detecting and dating an abrupt transition, in finished runs and in running ones."""

from spectral.detection.consensus import RunVerdict, detect_run
from spectral.detection.online import OnlineDetector, OnlineEvent
from spectral.detection.transition import Transition, detect_transition

__all__ = ["OnlineDetector", "OnlineEvent", "RunVerdict", "Transition", "detect_run", "detect_transition"]
