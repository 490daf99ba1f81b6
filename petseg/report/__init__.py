"""The report of a run, as one HTML file that needs nothing else."""

from petseg.report.gallery import Panel
from petseg.report.report import write_report

__all__ = ["Panel", "write_report"]
