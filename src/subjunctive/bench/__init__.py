"""The benchmark: models x data sets x metrics x seeds, at one budget, each cell its own process.

`benchmark` runs what a YAML file or a preset asks for, and goes on where it was ended; `collect`
reads what is there; `compare` tells which differences between models the data sets bear out.
"""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.bench.digest import summary as summary
    from subjunctive.bench.plan import Cell as Cell
    from subjunctive.bench.plan import Plan as Plan
    from subjunctive.bench.plan import read_plan as read_plan
    from subjunctive.bench.ranks import Comparison as Comparison
    from subjunctive.bench.ranks import compare as compare
    from subjunctive.bench.run import Benchmark as Benchmark
    from subjunctive.bench.run import benchmark as benchmark
    from subjunctive.bench.run import collect as collect

__getattr__, __dir__, __all__ = lazy(__name__)
