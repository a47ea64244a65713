"""The command line: `subjunctive demo | fit | counterfactual | evaluate | methods` and the rest.

Heavy libraries are imported by the command that needs them, so that `--help` is quick. A mistake of
the user's is one line on standard error and exit code 2; `--debug` shows where it was found.
"""

from subjunctive.cli import make as make  # the order here is the order of `--help`

from subjunctive.cli import ask as ask  # isort: skip
from subjunctive.cli import bench as bench  # isort: skip
from subjunctive.cli import catalogue as catalogue  # isort: skip
from subjunctive.cli.app import app as app
from subjunctive.cli.catalogue import renewed as renewed
