"""Data: simulators whose counterfactuals are known first, loaders of real data second.

A simulator has `.graph`, `.variables`, batches `.train`, `.valid` and `.test` that keep each row's
true noise in `context["u.<node>"]`, and `.oracle`, the true model, which answers any query exactly.
Simulators of images also have `.measure(images)`, which reads attributes from pixels. A user's own
rows come in by `Table` and `Images`, those that memory does not hold by `Stream`.
"""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.data.cells import GeneCells as GeneCells
    from subjunctive.data.domains import LatentDomains as LatentDomains
    from subjunctive.data.domains import RotatedDigits as RotatedDigits
    from subjunctive.data.images import Images as Images
    from subjunctive.data.morpho import MorphoDigits as MorphoDigits
    from subjunctive.data.oracle import Oracle as Oracle
    from subjunctive.data.pendulum import Pendulum as Pendulum
    from subjunctive.data.perturb import Papalexi as Papalexi
    from subjunctive.data.random_scm import RandomSCM as RandomSCM
    from subjunctive.data.scene import Scene as Scene
    from subjunctive.data.stream import Stream as Stream
    from subjunctive.data.table import Table as Table
    from subjunctive.data.tabular import Linear as Linear
    from subjunctive.data.tabular import Nonlinear as Nonlinear

__getattr__, __dir__, __all__ = lazy(__name__)
