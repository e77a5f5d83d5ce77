"""Which data calibrate and judge a build, and what they tell of the model's inputs."""

from __future__ import annotations

import dataclasses

from edgeopt.api.building.options import BuildOptions
from edgeopt.api.building.shapes import resized
from edgeopt.artifacts.interface import Pixels, Preprocessing
from edgeopt.data import Samples
from edgeopt.errors import ConfigError, PreconditionError
from edgeopt.ir.trees import leaves
from edgeopt.models.loaded import LoadedModel


@dataclasses.dataclass(frozen=True)
class Data:
    """The samples of a build.

    Attributes:
        calibration: What calibrates, or None.
        evaluation: What judges, or None.
        warnings: What the user should know of the choice.
    """

    calibration: Samples | None
    evaluation: Samples | None
    warnings: tuple[str, ...] = ()

    @property
    def first(self) -> Samples | None:
        """What files run on: golden vectors must not change with how many samples judge."""
        return self.calibration or self.evaluation

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the data's pictures became inputs, or None: they do not say."""
        for samples in (self.evaluation, self.calibration):
            if samples is not None and samples.preprocessing is not None:
                return samples.preprocessing
        return None


def choose_data(options: BuildOptions, loaded: LoadedModel, needs: str | None) -> Data:
    """Return the calibration and the evaluation samples.

    Where both are one data set, the samples that calibrate are left out of the evaluation.

    Args:
        options: The build's.
        loaded: The model, which may bring data of its own.
        needs: The first pass that needs calibration data, or None.

    Raises:
        DataError: If data cannot be read.
        PreconditionError: If a pass needs calibration data and there are none.
    """
    warnings: list[str] = []
    calibration, evaluation = loaded.calibration, loaded.evaluation
    if options.calib is not None:
        calibration = loaded.data(options.calib, name="calibration")
    if options.eval is not None:
        evaluation = loaded.data(options.eval, name="evaluation")
    if needs is not None and calibration is None:
        raise PreconditionError(
            f"{needs}: needs calibration data and the model brings none; pass --calib"
        )
    one_set = isinstance(options.calib, str) and options.eval == options.calib
    if calibration is not None and needs is not None:
        everything = calibration
        calibration = everything.take(options.calib_samples, options.seed)
        only = options.calib is not None and evaluation is None
        if (one_set or only) and everything.count > calibration.count:
            evaluation = everything.without(calibration)
            warnings.append(
                f"calibration and evaluation are one data set: {calibration.count} samples "
                f"calibrate, the other {evaluation.count} judge"
            )
    if evaluation is None:
        warnings.append("there are no evaluation data, so accuracy was not measured; pass --eval")
    elif options.eval_samples is not None:
        evaluation = evaluation.take(options.eval_samples, options.seed)
    return Data(calibration, evaluation, tuple(warnings))


def with_real_example(loaded: LoadedModel, samples: Samples | None) -> LoadedModel:
    """Take the first real samples as example, so that each pass's drift means something.

    The files' static sizes are the example's, so a free dimension gets the size that the data have.
    """
    if samples is None:
        return loaded
    mine = leaves((loaded.example_args, dict(loaded.example_kwargs)))
    batch = next(samples.batches(len(mine[0])))
    if batch.size != len(mine[0]):
        args, kwargs = resized(batch.args, batch.kwargs, len(mine[0]))
        batch = dataclasses.replace(batch, args=args, kwargs=kwargs)
    for value, real, free in zip(mine, batch.inputs, loaded.dimensions, strict=True):
        pairs = enumerate(zip(value.shape, real.shape, strict=True))
        if any(size != found and axis not in free for axis, (size, found) in pairs):
            return loaded
    return dataclasses.replace(loaded, example_args=batch.args, example_kwargs=batch.kwargs)


def pixels_of(options: BuildOptions, loaded: LoadedModel, data: Data) -> Pixels | None:
    """Return how pixels become the model's input, if the file is to do that.

    Raises:
        ConfigError: If nobody says how pictures are normalized, or the model is NHWC itself.
    """
    if options.input_form == "float":
        return None
    known = data.preprocessing or loaded.preprocessing
    if known is None:
        raise ConfigError(
            "--input uint8-nhwc: neither the model nor its data say how pictures are normalized; "
            "give data with ?mean=..&std=.., or a preprocessing.toml beside them"
        )
    if known.layout != "NCHW":
        raise ConfigError("--input uint8-nhwc: the model takes channels last already")
    return Pixels(known.mean, known.std)


def check_lengths(
    loaded: LoadedModel, dynamic: tuple[str, ...], samples: Samples | None, what: str
) -> None:
    """Refuse data that the files, whose sizes are static unless named, could not be run on.

    Args:
        loaded: The model.
        dynamic: Names of the dimensions that stay dynamic.
        samples: The data.
        what: What they are called.

    Raises:
        ConfigError: Naming the input, its sizes, and the option.
    """
    if samples is None:
        return
    mine = leaves((loaded.example_args, dict(loaded.example_kwargs)))
    first = next(samples.batches(1)).inputs
    for value, real, free, name in zip(
        mine, first, loaded.dimensions, loaded.input_names, strict=True
    ):
        for axis, dimension in free.items():
            fixed = axis > 0 and dimension.name not in dynamic
            if fixed and value.shape[axis] != real.shape[axis]:
                raise ConfigError(
                    f"{what}: {name} is {real.shape[axis]} long in {dimension.name}, the model is "
                    f"compiled for {value.shape[axis]}; pass --dynamic {dimension.name}, or data "
                    "of one length"
                )
