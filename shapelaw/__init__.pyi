from .scaling.architectures.named_shapes import shape_named as shape_named
from .scaling.architectures.shape import Shape as Shape
from .scaling.checks.comparison import compare as compare
from .scaling.checks.report import check as check
from .scaling.design.next_batch import next_runs as next_runs
from .scaling.fitting.derived import difference as difference
from .scaling.fitting.derived import intervals as intervals
from .scaling.fitting.derived import optimal as optimal
from .scaling.fitting.fit_law import fit as fit
from .scaling.fitting.result import Fit as Fit
from .scaling.laws.bases import Chinchilla as Chinchilla
from .scaling.laws.factors import GroupedQuery as GroupedQuery
from .scaling.laws.factors import UShape as UShape
from .scaling.runs.catalog import load_runs as load_runs
from .scaling.runs.table import RunTable as RunTable

__version__: str
