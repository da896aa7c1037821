"""Whole numbers for weights: the INT4/INT8 specification and the methods that choose codes and scales."""
