"""
Noise stability against its Hessian approximation
=================================================

Gaussian noise on the weights raises the loss; for small noise by half of sigma squared times the trace of the Hessian.
The shaded part is where both agree within their errors: only there does the trace say what noise does.
"""

import matplotlib.pyplot as plt
from demo_pair import load

import genbound

results = genbound.evaluate(load(), ["noise_stability"], seed=0)
results.plot("noise_stability", ax=plt.subplots(layout="constrained")[1])

# %%
# The same as numbers: ``sem`` is the standard error over the draws.

for row in results.quantities["noise_stability"]["sigmas"]:
    value, error, predicted = row["value"], row["sem"], row["hessian_approximation"]
    print(f"sigma {row['sigma']:<6g} {value:.5f} ± {error:.5f}, predicted {predicted:.5f}")
