"""The formats: what writes each, and what runs and reads its files."""

from __future__ import annotations

from edgeopt.errors import ConfigError, nearest
from edgeopt.exporters.base import Exporter
from edgeopt.runtime_tests.inspection import Inspector

SUFFIXES = {".onnx": "onnx", ".pte": "executorch"}
"""Suffix of a plain model file -> its format."""


def exporter_for(format_: str) -> Exporter:
    """Return the exporter of a format.

    Raises:
        ConfigError: If there is none; the nearest is suggested.
    """
    from edgeopt.exporters.executorch.exporter import ExecuTorchExporter
    from edgeopt.exporters.onnx.exporter import OnnxExporter
    from edgeopt.exporters.qnn.exporter import QnnExporter
    from edgeopt.exporters.tensorrt.exporter import TensorRTExporter

    exporters = (OnnxExporter, TensorRTExporter, ExecuTorchExporter, QnnExporter)
    known: dict[str, type[Exporter]] = {e.format: e for e in exporters}
    if format_ not in known:
        raise ConfigError(f"format {format_!r} is not known{nearest(format_, known)}")
    return known[format_]()


def inspector_for(format_: str) -> Inspector:
    """Return what runs and reads the files of a format.

    Raises:
        ConfigError: If there is none; the nearest is suggested.
    """
    from edgeopt.runtime_tests.executorch.inspector import ExecuTorchInspector
    from edgeopt.runtime_tests.onnxruntime.inspector import OnnxInspector
    from edgeopt.runtime_tests.qnn.inspector import QnnInspector
    from edgeopt.runtime_tests.tensorrt.inspector import TensorRTInspector

    inspectors = (OnnxInspector, TensorRTInspector, ExecuTorchInspector, QnnInspector)
    known: dict[str, type[Inspector]] = {i.format: i for i in inspectors}
    if format_ not in known:
        raise ConfigError(f"format {format_!r} is not known{nearest(format_, known)}")
    return known[format_]()
