"""Whole experiments: what to train, what to compare, which page to write."""
