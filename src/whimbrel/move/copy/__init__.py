"""Copying collections from store to store, without a catalog: `copy_all` is what a program calls."""

from whimbrel.move.copy.cold import ColdReport, copy_cold
from whimbrel.move.copy.copier import Options, Step
from whimbrel.move.copy.report import CopyFailure, CopyReport, Told, Verified
from whimbrel.move.copy.run import copy_all

__all__ = ["ColdReport", "CopyFailure", "CopyReport", "Options", "Step", "Told", "Verified", "copy_all", "copy_cold"]
