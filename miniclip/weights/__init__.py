"""Weights on the disk: save and load a run's, load other projects', export a run's."""
