"""UltraFace RFB-320, a face detector: `ultraface.py:ultraface`.

Structure as in the repository Ultra-Light-Fast-Generic-Face-Detector-1MB (`mb_tiny_RFB.py`),
weights and pictures from the asset folder `ultraface-rfb320`. There is no ground truth for the
pictures: a detector is judged by how far its faces are those of the float model (`agreement`),
which `ref_detections_float.json` lists. Mirrored pictures calibrate.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEIGHT = 320, 240
MAPS = ((40, 30), (20, 15), (10, 8), (5, 4))
BOXES_PX = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
SCORE, NMS_IOU, MATCH_IOU = 0.7, 0.3, 0.5
MOST_FACES = 200

Array = np.ndarray[Any, Any]


def assets() -> Path:
    """Return the asset folder: EDGEOPT_ASSETS, or `shared/assets` beside the checkout."""
    if "EDGEOPT_ASSETS" in os.environ:
        return Path(os.environ["EDGEOPT_ASSETS"])
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "assets").is_dir():
            return parent / "shared" / "assets"
    raise FileNotFoundError("set EDGEOPT_ASSETS to the asset folder")


class ConvNorm(nn.Module):
    """A convolution, its batch norm, and perhaps a ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int = 1, *, relu: bool = False
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class ReceptiveFields(nn.Module):
    """Three branches with growing dilation, joined, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width // 8
        self.branch0 = nn.Sequential(
            ConvNorm(width, w, 1), ConvNorm(w, 2 * w, 3, relu=True), ConvNorm(2 * w, 2 * w, 3, 2)
        )
        self.branch1 = nn.Sequential(
            ConvNorm(width, w, 1), ConvNorm(w, 2 * w, 3, relu=True), ConvNorm(2 * w, 2 * w, 3, 3)
        )
        self.branch2 = nn.Sequential(
            ConvNorm(width, w, 1),
            ConvNorm(w, w // 2 * 3, 3, relu=True),
            ConvNorm(w // 2 * 3, 2 * w, 3, relu=True),
            ConvNorm(2 * w, 2 * w, 3, 5),
        )
        self.ConvLinear = ConvNorm(6 * w, width, 1)
        self.shortcut = ConvNorm(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], dim=1)
        return F.relu(self.ConvLinear(joined) + self.shortcut(x))


def stem(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def depthwise(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1),
    )


class UltraFace(nn.Module):
    """Detect faces: float [B, 3, 240, 320] -> scores [B, 4420, 2] and boxes [B, 4420, 4].

    A box is the offset from its prior; `decode` makes corners of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base_net = nn.Sequential(
            stem(3, 16),
            depthwise(16, 32),
            depthwise(32, 32, 2),
            depthwise(32, 32),
            depthwise(32, 64, 2),
            depthwise(64, 64),
            depthwise(64, 64),
            ReceptiveFields(64),
            depthwise(64, 128, 2),
            depthwise(128, 128),
            depthwise(128, 128),
            depthwise(128, 256, 2),
            depthwise(256, 256),
        )
        self.extras = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), separable(64, 256, 2), nn.ReLU())]
        )
        self.regression_headers = self._headers(4)
        self.classification_headers = self._headers(2)

    def _headers(self, values: int) -> nn.ModuleList:
        widths = (64, 128, 256)
        counts = [values * len(boxes) for boxes in BOXES_PX]
        first = [separable(width, n) for width, n in zip(widths, counts, strict=False)]
        return nn.ModuleList([*first, nn.Conv2d(256, counts[3], 3, padding=1)])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = []
        x = image
        for index, stage in enumerate(self.base_net):
            x = stage(x)
            if index in (7, 10, 12):
                features.append(x)
        features.append(self.extras[0](x))
        return {
            "scores": self._all(self.classification_headers, features, 2).softmax(dim=2),
            "boxes": self._all(self.regression_headers, features, 4),
        }

    def _all(self, headers: nn.ModuleList, features: list[Tensor], values: int) -> Tensor:
        found = [
            header(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
            for header, x in zip(headers, features, strict=True)
        ]
        return torch.cat(found, dim=1)


def priors() -> Array:
    """Return centre x, centre y, width and height of each prior, relative: float [4420, 4]."""
    found = []
    for (columns, rows), sizes in zip(MAPS, BOXES_PX, strict=True):
        y, x, size = np.meshgrid(np.arange(rows), np.arange(columns), sizes, indexing="ij")
        # the repository divides by the picture's size over the rounded-up stride
        scale_x, scale_y = WIDTH / _stride(columns, WIDTH), HEIGHT / _stride(rows, HEIGHT)
        found.append(
            np.stack(
                [(x + 0.5) / scale_x, (y + 0.5) / scale_y, size / WIDTH, size / HEIGHT], axis=-1
            ).reshape(-1, 4)
        )
    return np.clip(np.concatenate(found), 0.0, 1.0)


def _stride(cells: int, pixels: int) -> int:
    return next(stride for stride in (8, 16, 32, 64) if -(-pixels // stride) == cells)


def decode(boxes: Array) -> Array:
    """Return corners x1, y1, x2, y2 of offsets from the priors: [B, 4420, 4]."""
    known = priors()
    centre = boxes[..., :2] * CENTRE_VARIANCE * known[:, 2:] + known[:, :2]
    size = np.exp(boxes[..., 2:] * SIZE_VARIANCE) * known[:, 2:]
    return np.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def detections(scores: Array, boxes: Array) -> list[Array]:
    """Return the faces of each picture: x1, y1, x2, y2, score [faces, 5], best first."""
    found = []
    for score, corners in zip(scores[..., 1], decode(boxes), strict=True):
        rows = np.concatenate([corners, score[:, None]], axis=1)[score > SCORE]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        kept: list[Array] = []
        for row in rows:
            if not kept or overlaps(row[None], np.array(kept)).max() <= NMS_IOU:
                kept.append(row)
        found.append(np.array(kept).reshape(-1, 5))
    return found


def overlaps(a: Array, b: Array) -> Array:
    """Return intersection over union of each pair of boxes: [len(a), len(b)]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=2)
    area_a, area_b = (np.prod(c[:, 2:4] - c[:, :2], axis=1) for c in (a, b))
    return shared / (area_a[:, None] + area_b[None] - shared)


def agreement(outputs: list[Array], labels: Array) -> Array:
    """Return, for each picture, the share of faces that both sides found, in percent.

    A face counts if the other side has one with an IoU of 0.5 or more; of the faces of both sides
    together, this is the share that counts.
    """
    shares = []
    for found, padded in zip(detections(*outputs), labels, strict=True):
        wanted = padded[padded[:, 4] > 0]
        if not len(found) or not len(wanted):
            shares.append(float(len(found) == len(wanted)))
            continue
        near = overlaps(found, wanted) >= MATCH_IOU
        shares.append((near.any(1).sum() + near.any(0).sum()) / (len(found) + len(wanted)))
    return 100.0 * np.array(shares)


agreement.unit = "points"  # type: ignore[attr-defined]


def pictures(folder: Path) -> tuple[list[str], Tensor]:
    """Return names and float [N, 3, 240, 320] of the pictures."""
    from PIL import Image

    paths = sorted((folder / "images").glob("*.jpg"), key=lambda path: int(path.stem))
    rows = []
    for path in paths:
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        rows.append((np.asarray(small, dtype=np.float32) - 127.0) / 128.0)
    return [path.name for path in paths], torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def reference(folder: Path, names: list[str]) -> Array:
    """Return the float model's faces as published with the assets: [N, 200, 5], zeros beyond."""
    known = json.loads((folder / "ref_detections_float.json").read_text())
    padded = np.zeros((len(names), MOST_FACES, 5), dtype=np.float32)
    for row, name in zip(padded, names, strict=True):
        faces = np.array(known[name], dtype=np.float32).reshape(-1, 5)
        row[: len(faces)] = faces
    return padded


def ultraface() -> dict[str, Any]:
    """Return the trained model with its data."""
    folder = assets() / "ultraface-rfb320"
    module = UltraFace().eval()
    module.load_state_dict(load_file(folder / "rfb320.safetensors"))
    names, images = pictures(folder)
    return {
        "module": module,
        "example_args": images[:2],
        "calibration": images.flip(3).contiguous(),
        "evaluation": (images, reference(folder, names)),
        "metric": f"{__file__}:agreement",
    }
