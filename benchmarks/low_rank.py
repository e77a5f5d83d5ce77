"""Print what low-rank factors cost in accuracy, plain against whitened, and what they save in time.

    python benchmarks/low_rank.py             accuracy of two real models (see EDGEOPT_ASSETS)
    python benchmarks/low_rank.py --kernels   one layer against two, in ONNX Runtime, on this CPU

Accuracy: stories260K (perplexity on other stories than those that calibrate) and MiniLM (cosine to
the float model's sentence embeddings, and Spearman's correlation with the scores of STS pairs).
Each layer is also judged alone, on the evaluation data: both methods at the whitened method's rank.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import importlib.util
import itertools
import math
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edgeopt
from edgeopt.analysis.layers import find_layers
from edgeopt.analysis.moments import input_moments
from edgeopt.devices.profile import LowRankRule, load_profile
from edgeopt.errors import ConfigError
from edgeopt.ir.calls import Batch
from edgeopt.numerics.low_rank import output_error
from edgeopt.numerics.observers import SecondMoment
from edgeopt.passes.factorize.factorize_svd import FactorizeSVD, FactorizeSVDConfig
from edgeopt.passes.factorize.sites import LowRank, vectors
from edgeopt.pipeline.context import PassContext
from edgeopt.pipeline.pipeline import Pipeline
from edgeopt.pipeline.state import ModelState

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (0.9, 0.8, 0.7, 0.6)
# kernels: square layers, as the middle of a chain
WIDTHS = (64, 128, 256, 384, 512, 768, 1024)
SHARES = (0.25, 0.5, 0.75, 0.875)
ROWS = (1, 16, 128)
CHAIN = 4
REPEATS = 60


def from_tests(path: str) -> types.ModuleType:
    """Import a file of the tests."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Case:
    """A model with its data and what it is judged by."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        calibration: Sequence[Batch],
        evaluation: Sequence[Batch],
        judge: Callable[[nn.Module], str],
    ) -> None:
        self.name, self.module, self.judge = name, module.eval(), judge
        self.calibration, self.evaluation = calibration, evaluation

    @functools.cached_property
    def moments(self) -> dict[str, SecondMoment]:
        """What the linears read on the evaluation data, which no factor has seen."""
        layers = {n: m for n, m in self.module.named_modules() if isinstance(m, nn.Linear)}
        wanted = {n: (m.in_features, functools.partial(vectors, m)) for n, m in layers.items()}
        return input_moments(self.module, wanted, lambda: iter(self.evaluation))

    def factorized(self, **options: Any) -> ModelState:
        """Return the model after the pass."""
        first = self.calibration[0]
        # any width, so that small models show what the method does
        rule = LowRankRule(multiple=8, source="this benchmark")
        profile = dataclasses.replace(load_profile("host"), low_rank=rule)
        context = PassContext(
            profile=profile,
            target=profile.targets[0],
            example_args=first.args,
            example_kwargs=first.kwargs,
            calibration=lambda: iter(self.calibration),
        )
        step = FactorizeSVD(FactorizeSVDConfig(**options))
        return Pipeline((step,)).run(ModelState(module=self.module), context, verify="edited")


def stories() -> Case:
    """Return stories260K; windows of 128 tokens."""
    made = from_tests("factories/stories260k.py")
    texts = made.texts()
    tokens, judged = made.windows(texts[:40], 128), made.windows(texts[60:90], 128)
    batches = [Batch((part,)) for part in tokens.split(16)]
    return Case(
        "stories260K",
        made.model(),
        batches,
        [Batch((part,)) for part in judged.split(16)],
        lambda module: f"perplexity {made.perplexity(module, judged):.2f}",
    )


def minilm() -> Case:
    """Return MiniLM; sentences of 32 tokens, padded."""
    from_tests("conftest.py")  # lets Transformers import beside a torchvision of another build
    from transformers import BertModel

    made = from_tests("factories/minilm.py")
    module = BertModel.from_pretrained(made.folder(), add_pooling_layer=False).eval()

    def batches(arrays: dict[str, Any]) -> list[Batch]:
        ids = torch.from_numpy(arrays["input_ids"]).split(20)
        masks = torch.from_numpy(arrays["attention_mask"]).split(20)
        return [
            Batch((), {"input_ids": i, "attention_mask": m})
            for i, m in zip(ids, masks, strict=True)
        ]

    pairs = made.pairs()
    evaluation = batches(pairs)

    def hidden(other: nn.Module) -> Any:
        with torch.no_grad():
            found = [other(**batch.kwargs).last_hidden_state for batch in evaluation]
        return torch.cat(found).numpy()

    mask = pairs["attention_mask"][..., None].astype(np.float32)

    def embedded(states: Any) -> Any:
        mean = (states * mask).sum(axis=1) / mask.sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    reference = embedded(hidden(module))

    def judge(other: nn.Module) -> str:
        states = hidden(other)
        cosine = float((embedded(states) * reference).sum(axis=1).mean())
        inputs = [pairs["input_ids"], pairs["attention_mask"]]
        return (
            f"cosine {cosine:.4f}, Spearman {made.spearman([states], pairs['labels'], inputs):.2f}"
        )

    return Case("MiniLM", module, batches(made.sentences()), evaluation, judge)


def compare(case: Case) -> Iterator[str]:
    """Yield the rows of one model."""
    yield f"| {case.name} | whole | {case.judge(case.module)} | | | | |"
    for budget in BUDGETS:
        started = time.perf_counter()
        try:
            white = case.factorized(budget=budget)
        except ConfigError as failure:
            yield f"| {case.name} | {budget:g} | {failure} | | | | |"
            continue
        seconds = time.perf_counter() - started
        plain = case.factorized(budget=budget, method="plain")
        same, errors = at_ranks_of(case, white.carrier_module)
        better = sum(w < p for w, p in errors)
        ratio = math.exp(sum(math.log(w / p) for w, p in errors) / max(len(errors), 1))
        yield (
            f"| {case.name} | {budget:g} | {case.judge(white.carrier_module)} | "
            f"{case.judge(same)} | {case.judge(plain.carrier_module)} | "
            f"{better} of {len(errors)}, {ratio:.3f} | {seconds:.1f} |"
        )


def at_ranks_of(case: Case, white: nn.Module) -> tuple[nn.Module, list[tuple[float, float]]]:
    """Return the model with plain SVD at another's ranks, and each layer's errors, paired.

    The errors are `||(W - B A) X|| / ||W X||` of each layer alone, on the float model's inputs for
    the evaluation data: (whitened, plain).
    """
    pairs = {n: m for n, m in white.named_modules() if isinstance(m, LowRank)}
    layers = {layer.fqn: layer for layer in find_layers(case.module)}
    same = copy.deepcopy(case.module)
    errors = []
    for name, pair in pairs.items():
        factors = {factor.fqn: factor.matrix() for factor in find_layers(pair)}
        weight = layers[name].matrix()
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        rank = len(factors["down"])
        u, v = left[:, :rank] * values[:rank], right[:rank]
        same.get_submodule(name).weight.data = (u @ v).to(weight.dtype)
        # what a bias makes up for counts neither for nor against
        moment = case.moments[name]
        gram = moment.gram if layers[name].bias is None else moment.covariance
        errors.append(
            (
                output_error(weight, factors["up"], factors["down"], gram),
                output_error(weight, u, v, gram),
            )
        )
    return same, errors


def kernels() -> Iterator[str]:
    """Yield the time of factorized chains of layers over that of whole ones, by width and rank."""
    heads = ", ".join(f"{rows} rows" for rows in ROWS)
    yield f"| width | MACs kept | rank | float32: {heads} | INT8: {heads} |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as work:
        for width in WIDTHS:
            whole = chain(width, None, Path(work))
            for share in SHARES:
                rank = int(share * width / 2) // 8 * 8
                if rank == 0:
                    continue
                thin = chain(width, rank, Path(work))
                cells = [
                    ", ".join(f"{ratio(whole / name, thin / name, width, r):.2f}" for r in ROWS)
                    for name in ("onnxruntime-float32.onnx", "onnxruntime.onnx")
                ]
                yield f"| {width} | {2 * rank / width:.3f} | {rank} | {cells[0]} | {cells[1]} |"


def chain(width: int, rank: int | None, work: Path) -> Path:
    """Build four square layers with ReLUs between, whole or factorized; return the bundle."""
    torch.manual_seed(0)
    layers = [x for _ in range(CHAIN) for x in (nn.Linear(width, width), nn.ReLU())]
    module = nn.Sequential(*layers[:-1]).eval()
    x = torch.randn(32, width, generator=torch.Generator().manual_seed(1))
    settings = ("method=plain", f"rank={rank}", "ignore_profile=true")
    outcome = edgeopt.build(
        module,
        (x[:2],),
        profile="host",
        recipe="int8" if rank is None else "low-rank-int8",
        settings=() if rank is None else tuple(f"factorize_svd.{s}" for s in settings),
        calibration=x,
        dynamic=("batch",),
        latency=False,
        drift=False,
        verify="edited",
        out=work / f"{width}-{rank}",
    )
    return outcome.bundle_path


def ratio(whole: Path, thin: Path, width: int, rows: int) -> float:
    """Return the time of one file over another's: the lower quartiles of interleaved calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(path), options) for path in (whole, thin)]
    x = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    feeds = [{session.get_inputs()[0].name: x} for session in sessions]
    calls = max(1, int(2e7 / (CHAIN * rows * width**2)))  # about a millisecond a sample
    samples = np.empty((REPEATS, 2))
    for repeat, which in itertools.product(range(REPEATS), range(2)):
        started = time.perf_counter()
        for _ in range(calls):
            sessions[which].run(None, feeds[which])
        samples[repeat, which] = time.perf_counter() - started
    low = np.quantile(samples[REPEATS // 10 :], 0.25, axis=0)
    return float(low[1] / low[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", action="store_true", help="time one layer against two")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.kernels:
        for line in kernels():
            print(line, flush=True)
        return 0
    print("| model | kept | whitened | plain, same ranks | plain, own ranks | layers better | s |")
    print("|---|---|---|---|---|---|---|")
    for case in (stories(), minilm()):
        for line in compare(case):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
