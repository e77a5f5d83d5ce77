"""The child process of `hexagon`: compile one file, or load one and run it again and again."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.exporters.qnn.hexagon import write_frame
from edgeopt.files import write_text

PROVIDER = "QNNExecutionProvider"
_ONLY_FATAL = 4


class _NotLoadedError(Exception):
    """The package is there and does not load."""


class _FellBackError(Exception):
    """ONNX Runtime went on without the NPU."""


def main(order: Mapping[str, Any]) -> None:
    """Do what the order says."""
    if order["task"] == "compile":
        _compile(order)
    else:
        _serve(order)


def _compile(order: Mapping[str, Any]) -> None:
    answer = Path(order["answer"])
    try:
        _session(order)
        found = {}
    except Exception as failure:  # the runtime's own errors share no base but Exception
        found = _told(failure)
    write_text(answer, json.dumps(found))


def _serve(order: Mapping[str, Any]) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the simulator prints to stdout, which carries the answers
    try:
        session = _session(order)
        facts = {
            "inputs": {i.name: i.type for i in session.get_inputs()},
            "shapes": {i.name: i.shape for i in session.get_inputs()},
            "outputs": [o.name for o in session.get_outputs()],
        }
        write_frame(out, json.dumps(facts).encode(), b"+")
    except Exception as failure:
        write_frame(out, json.dumps(_told(failure)).encode(), b"-")
        return
    while size := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(int.from_bytes(size, "little"))
        with np.load(io.BytesIO(data), allow_pickle=False) as packed:
            inputs = {name: packed[name] for name in packed.files}
        try:
            outputs = session.run(facts["outputs"], inputs)
        except Exception as failure:
            write_frame(out, json.dumps(_told(failure)).encode(), b"-")
            continue
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip(facts["outputs"], outputs, strict=True)))
        write_frame(out, buffer.getvalue(), b"+")


def _session(order: Mapping[str, Any]) -> Any:
    try:
        import onnxruntime as ort
        import onnxruntime_qnn as qnn

        ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
        devices = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER]
    except Exception as failure:  # a missing shared library raises several types
        raise _NotLoadedError(str(failure)) from failure
    if not devices:
        raise _NotLoadedError(f"it registers no {PROVIDER}")
    settings = ort.SessionOptions()
    settings.log_severity_level = _ONLY_FATAL
    if order["task"] == "compile":
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_embed_mode", "0")
        settings.add_session_config_entry("ep.context_file_path", order["context"])
    elif order["strict"]:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_provider_for_devices(
        devices,
        {
            "backend_path": qnn.get_qnn_htp_path(),
            "htp_arch": str(order["arch"]),
            "soc_model": str(order["soc"]),
            "htp_graph_finalization_optimization_mode": "3",
            "enable_htp_fp16_precision": "1",  # what is float in the file
            # the quantize at the inputs and the dequantize at the outputs run on the NPU too
            "offload_graph_io_quantization": "0",
        },
    )
    session = ort.InferenceSession(order["model"], settings)
    if PROVIDER not in session.get_providers():
        # where the provider cannot be made, ONNX Runtime goes on with the CPU in silence
        raise _FellBackError(f"runs in {', '.join(session.get_providers())}, not on the NPU")
    return session


def _told(failure: Exception) -> dict[str, str]:
    text = " ".join(str(failure).split()) or type(failure).__name__
    if isinstance(failure, _NotLoadedError):
        return {"unavailable": text}
    if (
        isinstance(failure, _FellBackError)
        or "fallback to CPU EP has been explicitly disabled" in text
    ):
        return {"fallback": text}
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    kind = "data" if type(failure).__name__ in ("InvalidArgument", "ValueError") else "error"
    return {kind: text[:400]}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
