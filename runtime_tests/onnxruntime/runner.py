"""Run ONNX files in ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import BundleError, DataError, RuntimeUnavailable, nearest
from edgeopt.runtime_tests.base import Arrays, LoadOptions

PROVIDER = "CPUExecutionProvider"
INSTALL = "pip install 'edgeopt[onnxruntime]'"
_SILENT = 4  # only fatal messages: what goes wrong is raised, in one line


class OnnxRuntimeSession:
    """A loaded ONNX file. It has one method and no state."""

    def __init__(self, session: Any, where: str) -> None:
        """Hold a session.

        Args:
            session: An `onnxruntime.InferenceSession`.
            where: The file, named in errors.
        """
        self._session = session
        self._where = where
        self.input_names: tuple[str, ...] = tuple(i.name for i in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in session.get_outputs())

    def run(self, method: str, inputs: Arrays) -> Arrays:
        """Run the file; its one method goes by any name.

        Raises:
            DataError: If an input is missing, unknown, or of a wrong type or shape.
            BundleError: If the file fails while it runs.
        """
        for name in inputs:
            if name not in self.input_names:
                raise DataError(
                    f"{self._where}: no input {name!r}{nearest(name, self.input_names)}"
                )
        for name in self.input_names:
            if name not in inputs:
                raise DataError(f"{self._where}: input {name!r} is missing")
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as failure:  # the runtime's own errors share no base but Exception
            error = DataError if type(failure).__name__ == "InvalidArgument" else BundleError
            raise error(f"{self._where}: cannot be run: {one_line(failure)}") from failure
        return dict(zip(self.output_names, outputs, strict=True))

    def example_inputs(self, method: str = "forward", *, seed: int = 0) -> Arrays:
        """Make inputs that the file takes: normal floats, zero integers, 1 for a dynamic size.

        Raises:
            BundleError: For an input type that has no numpy form.
        """
        made: dict[str, np.ndarray[Any, Any]] = {}
        random = np.random.default_rng(seed)
        for info in self._session.get_inputs():
            shape = tuple(d if isinstance(d, int) and d > 0 else 1 for d in info.shape)
            dtype = _NUMPY.get(info.type)
            if dtype is None:
                raise BundleError(
                    f"{self._where}: input {info.name!r}: {info.type} has no numpy form"
                )
            if np.issubdtype(dtype, np.floating):
                made[info.name] = random.standard_normal(shape).astype(dtype)
            else:
                made[info.name] = np.zeros(shape, dtype)
        return made

    def close(self) -> None:
        """Free the runtime's session."""
        self._session = None


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeRunner:
    """ONNX Runtime's CPU provider, without spinning threads.

    Attributes:
        runtime: The name in profiles.
        optimized_model_path: Where `load` saves the graph that the runtime really runs, or None.
    """

    runtime: str = "onnxruntime"
    optimized_model_path: Path | None = None

    def unavailable(self) -> str | None:
        """Return why it cannot run here, and how to install it, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return f"ONNX Runtime is not installed: {INSTALL}"
        try:
            import onnxruntime
        except Exception as failure:  # a broken install raises anything
            return f"ONNX Runtime does not import ({one_line(failure)}): {INSTALL}"
        if PROVIDER not in onnxruntime.get_available_providers():
            return f"this build of ONNX Runtime has no {PROVIDER}: {INSTALL}"
        return None

    def version(self) -> str:
        """Return `onnxruntime VERSION`.

        Raises:
            RuntimeUnavailable: If it is not installed.
        """
        return f"onnxruntime {self._module().__version__}"

    def load(self, files: Sequence[Path], options: LoadOptions) -> OnnxRuntimeSession:
        """Load the first of `files`.

        Raises:
            RuntimeUnavailable: If ONNX Runtime is missing.
            BundleError: If the file is missing, empty, damaged, or no model that it takes.
        """
        path = files[0]
        try:
            size_bytes = path.stat().st_size
        except OSError as failure:
            raise BundleError(f"{path}: cannot be read: {failure.strerror}") from None
        if size_bytes == 0:
            raise BundleError(f"{path}: is empty")
        return self._open(str(path), str(path), options)

    def load_bytes(self, model: bytes, where: str, options: LoadOptions) -> OnnxRuntimeSession:
        """Load a model that is in memory; raises as `load` does."""
        return self._open(model, where, options)

    def _module(self) -> Any:
        reason = self.unavailable()
        if reason is not None:
            raise RuntimeUnavailable(reason)
        import onnxruntime

        return onnxruntime

    def _open(self, model: str | bytes, where: str, options: LoadOptions) -> OnnxRuntimeSession:
        ort = self._module()
        settings = ort.SessionOptions()
        settings.log_severity_level = _SILENT
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # Spinning threads of several sessions steal each other's cores.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = (
            level.ORT_ENABLE_ALL if options.optimize else level.ORT_DISABLE_ALL
        )
        if self.optimized_model_path is not None:
            settings.optimized_model_filepath = str(self.optimized_model_path)
        try:
            session = ort.InferenceSession(model, settings, providers=[PROVIDER])
        except Exception as failure:  # the runtime's own errors share no base but Exception
            raise BundleError(f"{where}: cannot be loaded: {one_line(failure)}") from failure
        return OnnxRuntimeSession(session, where)


def save_optimized(model: Path, to: Path, *, threads: int = 1) -> None:
    """Have ONNX Runtime write the graph that it runs on this machine; raises as `load` does."""
    runner = OnnxRuntimeRunner(optimized_model_path=to)
    runner.load([model], LoadOptions(threads=threads)).close()


_NUMPY: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def one_line(failure: BaseException) -> str:
    """Return an error's text on one line, without the runtime's own places in it."""
    text = " ".join(str(failure).split()) or type(failure).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    text = re.sub(r"^Load model from .*? failed:", "", text)
    text = re.sub(r"\S+\.(?:cc|cpp|h):\d+ (?:\S.*?\) )?", "", text).strip()
    return text if len(text) <= 200 else text[:197] + "..."
