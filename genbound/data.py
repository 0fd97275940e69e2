"""Which samples are measured: a map-style collection of samples, from files, functions or tensors."""
