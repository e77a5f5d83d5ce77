"""What the zoo holds, as plain data: importing this takes no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """One bundled model.

    Attributes:
        name: As in `zoo:NAME`.
        summary: What it is.
        input: Its input.
        shape: Of one sample.
        metric: How it is judged.
        parameters: Trained values.
        data: What it was trained and is judged on.
        source: Who trained it, and how to do it again.
    """

    name: str
    summary: str
    input: str
    shape: tuple[int, ...]
    metric: str
    parameters: int
    data: str
    source: str


_DIGITS = "UCI handwritten digits, as shipped in scikit-learn: 1197 training, 600 held-out pictures"

CATALOGUE: Mapping[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel(
            name="vit",
            summary="Vision transformer: 4 blocks, width 256, 25 tokens; trained for 2:4 sparsity",
            input="image float32 [N, 1, 40, 40]",
            shape=(1, 40, 40),
            metric="top1",
            parameters=3_185_162,
            data=_DIGITS,
            source="trained for edgeopt: python -m edgeopt.models.zoo.train vit",
        ),
        ZooModel(
            name="mobilenet",
            summary="MobileNetV2-style CNN: depthwise convolutions, residuals, ReLU6, batch norm",
            input="image float32 [N, 1, 32, 32]",
            shape=(1, 32, 32),
            metric="top1",
            parameters=211_626,
            data=_DIGITS,
            source="trained for edgeopt: python -m edgeopt.models.zoo.train mobilenet",
        ),
        ZooModel(
            name="bytelm",
            summary="Byte language model of the Llama kind: 4 blocks, width 192, tied head",
            input="tokens int64 [N, 96]",
            shape=(96,),
            metric="perplexity",
            parameters=1_623_744,
            data="the language reference inside CPython (pydoc_data.topics), split by paragraph",
            source="trained for edgeopt: python -m edgeopt.models.zoo.train bytelm",
        ),
    )
}
