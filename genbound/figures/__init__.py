"""Plots and the report: they read results and measure nothing."""
