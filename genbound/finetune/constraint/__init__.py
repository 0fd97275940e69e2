"""Layers kept near their pretrained weights: the projection, its radii, what counts as a layer."""
