"""Experiments: models trained side by side, to find out what makes the difference."""
