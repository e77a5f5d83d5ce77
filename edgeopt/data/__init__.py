"""Calibration and evaluation data: read, checked, streamed."""

from edgeopt.data.load import as_samples, load_data
from edgeopt.data.samples import LabelledBatch, Samples, Source, overlap
from edgeopt.data.signature import Signature

__all__ = [
    "LabelledBatch",
    "Samples",
    "Signature",
    "Source",
    "as_samples",
    "load_data",
    "overlap",
]
