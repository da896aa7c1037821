"""Measures a model: log-likelihood of the packaged texts, and verification of its files against what was published."""
