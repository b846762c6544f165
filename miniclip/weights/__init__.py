"""Weights on the disk: a run's own, other projects' read, and a run's exported."""
