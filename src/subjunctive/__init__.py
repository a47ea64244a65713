"""Causal generative modelling with latent variables: what is, what if, what would have been."""

from subjunctive.mechanism import seeded as seeded
