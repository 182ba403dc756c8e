"""Reports of a profile: tables in the terminal, one HTML page, a picture, CSV and JSON."""

from sparse_tx.profiler.report.exchange import (
    profile_from_json,
    profile_to_csv,
    profile_to_json,
)
from sparse_tx.profiler.report.files import write_report
from sparse_tx.profiler.report.summary import sentences
from sparse_tx.profiler.report.table import WIDTH_OF_FILES, tables

__all__ = [
    "WIDTH_OF_FILES",
    "profile_from_json",
    "profile_to_csv",
    "profile_to_json",
    "sentences",
    "tables",
    "write_report",
]
