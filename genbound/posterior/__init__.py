"""Gaussian posteriors around the fine-tuned weights: which coordinates, how wide, and draws of the network there."""
