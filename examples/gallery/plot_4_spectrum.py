"""
The spectrum of the Hessian
===========================

Ends and density of the spectrum by stochastic Lanczos quadrature, for all layers together and the largest eigenvalue of
each layer's own block.
"""

import matplotlib.pyplot as plt
from demo_pair import load

import genbound

results = genbound.evaluate(load(num_samples=32), ["hessian_spectrum"], seed=0)
results.plot("spectrum", ax=plt.subplots(layout="constrained")[1])

# %%
results.plot("largest_eigenvalues", ax=plt.subplots(layout="constrained")[1])
