"""Small ONNX files, and bundles around them, written by hand."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.artifacts.artifact import Artifact
from edgeopt.artifacts.bundle import entries, write_manifest
from edgeopt.artifacts.golden import write_golden
from edgeopt.artifacts.interface import Method, Preprocessing
from edgeopt.artifacts.manifest import Manifest
from edgeopt.exporters.onnx.signature import read_signature
from edgeopt.files import to_json
from edgeopt.results.measurements import AccuracyResult, LatencyResult, Machine, Percentile
from edgeopt.results.reports import ArtifactRow, BuildReport
from edgeopt.results.verdicts import Verdict

HERE = Machine("CPU", 2, (), "Linux", 0.0)
ORIN = Machine("Orin", 0, (), "", 0.0, "NVIDIA Jetson AGX Orin", {"power mode": "MAXN"})


def products(path: Path, count: int = 1, width: int = 16, doc: str = "", batch: int = 4) -> Path:
    """Write a chain of matrix products, all by one weight: more products, same size and shapes."""
    weight = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
    nodes = [
        helper.make_node("MatMul", [one, "w"], [other], name=f"m{i}")
        for i, (one, other) in enumerate(itertools.pairwise(names))
    ]
    shape = [batch, width]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, doc_string=doc)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def accuracy(artifact: str, drop: float = 0.0, **changes: Any) -> AccuracyResult:
    """Return an accuracy that is known to half a point."""
    result = AccuracyResult(
        artifact=artifact,
        runtime="onnxruntime 1",
        metric="top1",
        unit="points",
        reference=98.0,
        value=98.0 - drop,
        drop=drop,
        drop_low=drop - 0.5,
        drop_high=drop + 0.5,
        agreement=99.0,
        snr_db=30.0,
        cosine=0.99,
        samples=600,
    )
    return dataclasses.replace(result, **changes)


def latency(artifact: str, milliseconds: float, **changes: Any) -> LatencyResult:
    """Return a latency that was measured on an Orin and attached."""
    point = Percentile(milliseconds, milliseconds * 0.999, milliseconds * 1.001)
    result = LatencyResult(
        artifact,
        "TensorRT 10.3",
        ORIN,
        1,
        1,
        point,
        point,
        point,
        (milliseconds,) * 10,
        10,
    )
    return dataclasses.replace(result, **changes)


@dataclasses.dataclass(frozen=True)
class Small:
    """What a bundle holds; everything else is made up.

    Attributes:
        format: Of its artifact, called `main`.
        profile: Its profile.
        target: The target that the artifact is for.
        count: Products in the model.
        doc: Makes the file's bytes differ.
        batch: Rows of the input.
        report: Whether it has one.
        compile: What a compiler told.
        accuracy: Of the report.
        latency: Of the report.
        int8_macs: Of the report.
        float_gemms: Of the report.
        model: As the manifest names it.
        labels: Of the manifest.
        preprocessing: Of the manifest.
        plan: The artifact's rule set.
        beside: Files of the artifact beside the model file: name -> content.
        more: Artifacts of the same file: name -> (format, target).
        golden: Whether it has golden vectors.
    """

    format: str = "onnx"
    profile: str = "host"
    target: str = "onnxruntime"
    count: int = 1
    doc: str = ""
    batch: int = 4
    report: bool = True
    compile: dict[str, Any] = dataclasses.field(default_factory=dict)
    accuracy: tuple[AccuracyResult, ...] = (accuracy("main"),)
    latency: tuple[LatencyResult, ...] = ()
    int8_macs: float | None = 0.9
    float_gemms: int | None = 1
    model: str = "net.py:make"
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    plan: str = ""
    beside: dict[str, bytes] = dataclasses.field(default_factory=dict)
    more: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    golden: bool = True

    def write(self, folder: Path) -> Path:
        """Write the bundle."""
        file = products(folder / "main.onnx", self.count, doc=self.doc, batch=self.batch)
        x = np.arange(self.batch * 16, dtype=np.float32).reshape(self.batch, 16)
        for name, content in self.beside.items():
            (folder / name).write_bytes(content)
        written = {e.path: e for e in entries(folder)}
        entry = written["main.onnx"]
        names = ["main", *self.more]
        if self.golden:
            for name in names:  # the weight is the identity
                write_golden(folder, name, {"x": x}, {"y": x})
        artifact = Artifact(
            name="main",
            target=self.target,
            format=self.format,
            precision="float32",
            plan=self.plan,
            files=(entry, *(written[name] for name in self.beside)),
            methods=(self.method(file),),
            tensor_map={},
        )
        others = tuple(
            dataclasses.replace(artifact, name=name, format=format_, target=target)
            for name, (format_, target) in self.more.items()
        )
        manifest = Manifest(
            edgeopt="0.1.0",
            model=self.model,
            profile=self.profile,
            recipe="float",
            build_key="k",
            hashes={},
            seed=0,
            tools={"torch": "2.13"},
            artifacts=(artifact, *others),
            files=entries(folder),
            preprocessing=self.preprocessing,
            labels=self.labels,
            minimum_runtime={"onnxruntime": "1.20", "tensorrt": "10.3"},
            golden={name: f"golden/{name}.npz" for name in names} if self.golden else {},
        )
        write_manifest(folder, manifest)
        if self.report:
            row = ArtifactRow(
                name="main",
                target=self.target,
                format=self.format,
                precision="float32",
                file="main.onnx",
                size_bytes=entry.size_bytes,
                sha256=entry.sha256,
                macs=1024 * self.count,
                int8_macs=self.int8_macs,
                float_gemms=self.float_gemms,
            )
            report = BuildReport(
                bundle="",
                edgeopt="0.1.0",
                model="net.py:make",
                profile=self.profile,
                profile_title="",
                recipe="float",
                build_key="k",
                verdict=Verdict.PASS,
                machine=HERE,
                tools={},
                artifacts=(row,),
                accuracy=self.accuracy,
                latency=self.latency,
                compile={"main": self.compile} if self.compile else {},
            )
            (folder / "report.json").write_text(to_json(report), encoding="utf-8")
        return folder

    @staticmethod
    def method(file: Path) -> Method:
        """Return the file's one method."""
        return read_signature(file).method
