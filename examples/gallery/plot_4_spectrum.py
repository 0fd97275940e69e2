"""
The spectrum of the Hessian
===========================

Ends and density of the spectrum by stochastic Lanczos quadrature, for all layers together and the largest eigenvalue of
each layer's own block.
"""

from demo_pair import load

import genbound

results = genbound.evaluate(load(num_samples=32), ["hessian_spectrum"], seed=0)
results.plot("spectrum")

# %%
results.plot("largest_eigenvalues")
