"""Tables and figures from finished runs; reads files only."""

from peft_smop.report.comparison import Row, compare, draw, outcomes_of
from peft_smop.report.costs import CostRatios, cost_ratios
from peft_smop.report.routes import WHO, draw_routes
from peft_smop.report.significance import Difference, holm, paired_bootstrap

__all__ = [
    "WHO",
    "CostRatios",
    "Difference",
    "Row",
    "compare",
    "cost_ratios",
    "draw",
    "draw_routes",
    "holm",
    "outcomes_of",
    "paired_bootstrap",
]
