"""Metrics: how sound counterfactuals are, as functions of tensors, and `evaluate` over all of them.

Axioms (composition, reversibility, effectiveness, minimality), distance to the truth, realism,
disentanglement, exogeneity of abducted noise, agreement of the rungs. Each returns an `Estimate`
with a standard error, or names with estimates.
"""

from subjunctive.metrics.agreement import agreement as agreement
from subjunctive.metrics.axioms import composition as composition
from subjunctive.metrics.axioms import effectiveness as effectiveness
from subjunctive.metrics.axioms import minimality as minimality
from subjunctive.metrics.axioms import reversibility as reversibility
from subjunctive.metrics.discrepancy import Discrepancy as Discrepancy
from subjunctive.metrics.discrepancy import energy as energy
from subjunctive.metrics.disentangle import DCI as DCI
from subjunctive.metrics.disentangle import dci as dci
from subjunctive.metrics.distance import changed as changed
from subjunctive.metrics.distance import l1 as l1
from subjunctive.metrics.distance import l2 as l2
from subjunctive.metrics.distance import mae as mae
from subjunctive.metrics.estimate import Estimate as Estimate
from subjunctive.metrics.evaluate import evaluate as evaluate
from subjunctive.metrics.evaluate import table as table
from subjunctive.metrics.exogeneity import Exogeneity as Exogeneity
from subjunctive.metrics.exogeneity import exogeneity as exogeneity
from subjunctive.metrics.exogeneity import residual_share as residual_share
from subjunctive.metrics.interpolation import Interpolation as Interpolation
from subjunctive.metrics.interpolation import interpolation as interpolation
from subjunctive.metrics.population import bimodality as bimodality
from subjunctive.metrics.population import change_r2 as change_r2
from subjunctive.metrics.population import changed_most as changed_most
from subjunctive.metrics.population import e_distance as e_distance
from subjunctive.metrics.population import gaussian_mmd as gaussian_mmd
from subjunctive.metrics.population import wasserstein as wasserstein
from subjunctive.metrics.predictors import Predictor as Predictor
from subjunctive.metrics.predictors import fit_predictor as fit_predictor
from subjunctive.metrics.realism import frechet as frechet
from subjunctive.metrics.realism import kernel_distance as kernel_distance
from subjunctive.metrics.trivial import Copy as Copy
from subjunctive.metrics.trivial import CopyRescale as CopyRescale
from subjunctive.metrics.trivial import Retrieval as Retrieval
