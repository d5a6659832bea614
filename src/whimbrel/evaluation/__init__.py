"""How well a collection with judged queries is searched: nDCG@10, recall@100 and MRR@10 for each mode.

    from whimbrel.evaluation import evaluate

    found = evaluate("scifact")
    print(found.modes["hybrid"].mean("ndcg@10"))

Everything goes the way of the product, in a home of its own: catalog, chunks, views, search.
"""

from whimbrel.evaluation.evaluate import Evaluation, ModeResult, evaluate
from whimbrel.judging.compare import Comparison, Difference, compare, read_report
from whimbrel.judging.judged import Judged, read_judged
from whimbrel.judging.metrics import METRICS

__all__ = [
    "METRICS",
    "Comparison",
    "Difference",
    "Evaluation",
    "Judged",
    "ModeResult",
    "compare",
    "evaluate",
    "read_judged",
    "read_report",
]
