"""`python -m subjunctive` is the command line."""

from subjunctive.cli import app

app(prog_name="subjunctive")
