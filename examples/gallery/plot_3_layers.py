"""
Which layers drive the bound?
=============================

The Hessian distance is a sum over layers. The largest bar is the layer to constrain first.
"""

import matplotlib.pyplot as plt
from demo_pair import load

import genbound

results = genbound.evaluate(load(), ["losses", "hessian_distance"], seed=0)
results.plot("layers", ax=plt.subplots(layout="constrained")[1])

# %%
# A maximum over samples hangs on its largest sample. How far are the others below it?

results.plot("samples", ax=plt.subplots(layout="constrained")[1])
