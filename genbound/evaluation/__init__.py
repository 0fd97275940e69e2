"""The one loop: which measures, in which order, what is stored, what it will cost."""
