"""What genbound's quantities cost beside the tools they replace, in one process and one run."""
