"""Pictures and tables: what would have been, the graph, how training went, what was measured.

Every function draws on the axes it is given, or on a new `matplotlib.figure.Figure`'s, and returns
them; nothing goes through pyplot's global state. Save a picture by `axes.figure.savefig(path)`.
"""

from subjunctive.plot.bars import evaluation as evaluation
from subjunctive.plot.bars import mediation as mediation
from subjunctive.plot.bars import strengths as strengths
from subjunctive.plot.critical import ranks as ranks
from subjunctive.plot.curves import training as training
from subjunctive.plot.diagram import graph as graph
from subjunctive.plot.pictures import grid as grid
from subjunctive.plot.pictures import title as title
from subjunctive.plot.tables import markdown as markdown
from subjunctive.plot.tables import sections as sections
from subjunctive.plot.units import unit_mediation as unit_mediation
from subjunctive.plot.worlds import animate as animate
from subjunctive.plot.worlds import shift as shift
from subjunctive.plot.worlds import traversal as traversal
