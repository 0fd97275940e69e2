"""Wrong labels: drawing them, estimating their confusion matrix, losses that are unbiased under them."""
