"""Encoders: what the unseen may have been, given what was seen."""

from subjunctive.encoders.regression import Regression as Regression
from subjunctive.encoders.reordered import Reordered as Reordered
