"""Tables and figures from finished runs; reads files only."""

from peft_smop.report.comparison import Row, compare, draw

__all__ = ["Row", "compare", "draw"]
