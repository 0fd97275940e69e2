"""
Loss from the pretrained to the fine-tuned weights
==================================================

The Hessian-based bound takes the loss near the fine-tuned weights for a parabola. Here is the loss along the straight
line from the pretrained weights (0) to the fine-tuned ones (1) and beyond, one forward pass a point, with the parabola
that the curvature along the displacement predicts.
"""

import matplotlib.pyplot as plt
from demo_pair import load

import genbound

results = genbound.evaluate(load(), ["loss_path"], seed=0)
results.plot("loss_path", ax=plt.subplots(layout="constrained")[1])
