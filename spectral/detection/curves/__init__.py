"""Labelled curves: what a signal looks like with a transition and without one; which of them calibration may see."""
