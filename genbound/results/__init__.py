"""Tables: stored results, their comparison and correlation, the regression check, export."""
