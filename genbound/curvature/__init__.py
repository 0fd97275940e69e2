"""Hessian and Gauss-Newton products, per layer and per sample, taken in activation space."""
