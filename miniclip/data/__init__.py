"""Pairs and labelled images, from files, the Hub or a generator, to batches of tensors."""
