"""What can be run: weights, samples, a loss, one forward pass; how its layers are found; a network with its layers."""
