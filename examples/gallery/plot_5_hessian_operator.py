"""
The Hessian as a linear operator
================================

For those who go on from here: one layer's block, or all layers, as a ``scipy.sparse.linalg.LinearOperator``.
Everything that scipy does with operators works. Here are the three largest eigenvalues of one layer's block, and how
far their eigenvectors point along the displacement.
"""

import matplotlib.pyplot as plt
import numpy as np
from demo_pair import load
from scipy.sparse.linalg import eigsh

import genbound

problem = load(num_samples=32)
layer = "mlp.2.weight"
block = genbound.hessian_operator(problem, layer)
values, vectors = eigsh(block, k=3, which="LA")
v = problem.displacement[layer].flatten().numpy()
cosines = np.abs(vectors.T @ v) / np.linalg.norm(v)

fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.bar(range(3), cosines[::-1], tick_label=[f"{value:.3g}" for value in values[::-1]])
ax.set_xlabel(f"largest eigenvalues of {layer}")
ax.set_ylabel("|cosine| with the displacement")
ax.set_ylim(0, 1)
