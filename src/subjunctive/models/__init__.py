"""Models: one published model, one recipe over the rooms before."""

from subjunctive.models.causal_diffae import CausalDiffAE as CausalDiffAE
