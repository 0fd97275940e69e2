"""genbound: how well is a fine-tuned network guaranteed to generalize?"""

__version__ = "0.1.0"
