#!/usr/bin/env python3
"""Build a TensorRT engine on this device, check its outputs and time it.

Reads NAME.engine.json beside this script, builds the engine from the ONNX file that it names,
runs the golden inputs, times the engine, and writes measured.json for
`edgeopt report BUNDLE --attach measured.json`. Needs Python 3.8 or newer and trtexec, which comes
with TensorRT.

Exit codes: 0 good; 1 a file is damaged, the engine cannot be built or run, or its outputs are not
the golden ones; 2 a file is missing or invalid; 3 this machine has no TensorRT that takes the file.
"""

from __future__ import annotations

import argparse
import array
import ast
import glob
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zipfile
from typing import Any, NamedTuple

TRTEXEC_PLACES = (
    "/usr/src/tensorrt/bin/trtexec",
    "/usr/local/tensorrt/bin/trtexec",
    "/opt/tensorrt/bin/trtexec",
)
SCHEMA = 1
KEYS = (
    "sha256",
    "minimum_tensorrt",
    "flags",
    "profiles",
    "tolerance",
    "inputs",
    "outputs",
    "warmup",
    "samples",
)
NAMES = ("onnx", "golden", "timing_cache", "artifact")
MAX_GOLDEN_RUNS = 16
WARM_UP_MS = 500
TYPES = {  # numpy's descriptor -> (name, struct code, bytes)
    "<f4": ("float32", "f", 4),
    "<f2": ("float16", "e", 2),
    "<f8": ("float64", "d", 8),
    "<i8": ("int64", "q", 8),
    "<i4": ("int32", "i", 4),
    "|i1": ("int8", "b", 1),
    "|u1": ("uint8", "B", 1),
    "|b1": ("bool", "?", 1),
}


class Failure(Exception):
    """An end with an exit code and one line for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Array(NamedTuple):
    """One array of an .npz file: type by name, struct code, sizes, little-endian bytes."""

    kind: str
    code: str
    shape: tuple[int, ...]
    raw: bytes


class Golden(NamedTuple):
    """Golden vectors, and how they are cut into batches that the engine takes."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    total: int
    batch: int


class Trtexec(NamedTuple):
    """The program, its version (empty where it does not tell) and its help text."""

    path: str
    version: tuple[int, ...]
    help: str


class Place(NamedTuple):
    """The bundle's folder, the model file, and where engine and logs go."""

    folder: str
    model: str
    work: str

    def log(self, name: str) -> str:
        return os.path.join(self.work, name)


def say(text: str) -> None:
    print(text, flush=True)


# description -----------------------------------------------------------------------------------


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def default_description() -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    found = sorted(glob.glob(os.path.join(here, "*.engine.json")))
    if len(found) == 1:
        return found[0]
    names = ", ".join(os.path.basename(path) for path in found)
    what = f"several engine descriptions; name one of {names}" if found else "no *.engine.json"
    raise Failure(2, f"{here}: holds {what}")


def read_description(path: str) -> dict[str, Any]:
    """Read NAME.engine.json."""
    try:
        with open(path, encoding="utf-8") as file:
            engine = json.load(file)
    except (OSError, ValueError) as error:
        raise Failure(2, f"{path}: cannot be read: {error}") from None
    if not isinstance(engine, dict) or engine.get("schema") != SCHEMA:
        raise Failure(2, f"{path}: is no engine description of schema {SCHEMA}")
    for key in (*KEYS, *NAMES):
        if engine.get(key) is None:
            raise Failure(2, f"{path}: {key} is missing")
    for key in NAMES:
        name = str(engine[key])
        if not name or os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise Failure(2, f"{path}: {key} {name!r} is no name inside the folder")
    return engine


def check_model(engine: dict[str, Any], model: str) -> None:
    if not os.path.isfile(model):
        raise Failure(2, f"{model}: is not there; copy the whole bundle")
    found = sha256(model)
    if found != engine["sha256"]:
        raise Failure(
            1, f"{model}: is damaged: sha256 {found[:12]}, expected {engine['sha256'][:12]}"
        )


# trtexec ---------------------------------------------------------------------------------------


def find_trtexec(asked: str | None) -> str:
    if asked:
        if not os.path.isfile(asked) or not os.access(asked, os.X_OK):
            raise Failure(2, f"{asked}: is no program")
        return asked
    for place in (shutil.which("trtexec"), *TRTEXEC_PLACES):
        if place and os.access(place, os.X_OK):
            return place
    raise Failure(
        3,
        "trtexec was not found; install TensorRT (JetPack has it in /usr/src/tensorrt/bin), "
        "or pass --trtexec PATH",
    )


def run(command: list[str], log: str) -> tuple[int, str]:
    """Run a command; return its exit code and output, which also goes to a log file."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise Failure(3, f"{command[0]}: cannot be run: {error}") from None
    text = done.stdout.decode("utf-8", "replace")
    with open(log, "w", encoding="utf-8") as file:
        file.write(quoted(command) + "\n" + text)
    return done.returncode, text


def quoted(command: list[str]) -> str:
    return " ".join(shlex.quote(part) for part in command)


def decode_version(text: str) -> tuple[int, ...]:
    """Return TensorRT's version from trtexec's banner: v8602 is 8.6.2, v100300 is 10.3.0."""
    match = re.search(r"TensorRT v(\d+)", text)
    if not match:
        return ()
    number = int(match.group(1))
    unit = 1000 if number < 10000 else 10000
    return (number // unit, number % unit // 100, number % 100)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def inspect_trtexec(path: str, minimum: str, log: str) -> Trtexec:
    """Ask trtexec for its version and options; refuse one that is too old."""
    _, text = run([path, "--help"], log)
    version = decode_version(text)
    if version and version < tuple(int(part) for part in minimum.split(".")):
        raise Failure(
            3, f"TensorRT {dotted(version)} is too old: the model needs {minimum} or newer"
        )
    return Trtexec(path, version, text)


def known_flags(flags: list[str], trtexec: Trtexec) -> list[str]:
    """Drop flags that this trtexec does not know; refuse where one of them matters."""
    if "--onnx" not in trtexec.help:
        return list(flags)
    kept = []
    for flag in flags:
        name = flag.split("=")[0]
        if name in trtexec.help:
            kept.append(flag)
        elif name == "--stronglyTyped" and trtexec.version[:1] < (11,):
            raise Failure(3, "this TensorRT has no strongly typed networks; 10.0 or newer has")
        else:  # from TensorRT 11 on every network is strongly typed
            say(f"note: this trtexec has no {name}")
    return kept


def last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "[E]" in line]
    if errors:
        return errors[0]
    return lines[-1] if lines else "no message"


def shapes_text(shapes: list[tuple[str, Any]]) -> str:
    return ",".join(name + ":" + "x".join(str(size) for size in shape) for name, shape in shapes)


def build(engine: dict[str, Any], trtexec: Trtexec, place: Place) -> tuple[str, str]:
    """Build the engine; return its path and the log."""
    plan = place.log(engine["artifact"] + ".engine")
    if os.path.exists(plan):
        os.remove(plan)
    command = [trtexec.path, "--onnx=" + place.model, "--saveEngine=" + plan]
    command += known_flags(engine["flags"], trtexec)
    command.append("--timingCacheFile=" + os.path.join(place.folder, engine["timing_cache"]))
    for option, key in (("min", "minimum"), ("opt", "optimum"), ("max", "maximum")):
        if engine["profiles"]:
            shapes = [(p["name"], p[key]) for p in engine["profiles"]]
            command.append(f"--{option}Shapes={shapes_text(shapes)}")
    command.append("--skipInference" if "--skipInference" in trtexec.help else "--buildOnly")
    command.append("--exportLayerInfo=" + place.log("layers.json"))
    say(f"building {plan} (minutes on a small device)")
    code, text = run(command, place.log("build.log"))
    if code or not os.path.isfile(plan):
        raise Failure(1, f"trtexec cannot build the engine: {last_error(text)}")
    return plan, text


def read_layers(path: str) -> list[str]:
    """Return one line a layer of --exportLayerInfo; nothing where there is no readable file."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)["Layers"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [" ".join(layer_line(layer).split())[:400] for layer in found]


def layer_line(layer: Any) -> str:
    if not isinstance(layer, dict):
        return str(layer)
    parts = [layer.get("Name", ""), layer.get("LayerType", "")]
    parts.append(layer.get("TacticName") or layer.get("TacticValue") or "")
    for side in ("Inputs", "Outputs"):
        tensors = [t for t in layer.get(side, []) if isinstance(t, dict)]
        kinds = [str(t.get("Format/Datatype", t.get("Datatype", ""))) for t in tensors]
        parts.append(f"{side.lower()} {', '.join(kinds)}" if kinds else "")
    return " | ".join(str(part) for part in parts if part)


# golden vectors --------------------------------------------------------------------------------


def parse_npy(data: bytes, where: str) -> Array:
    """Read one .npy file."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise Failure(2, f"{where}: is no .npy array")
    wide = data[6] > 1
    start = 12 if wide else 10
    (length,) = struct.unpack("<I" if wide else "<H", data[8:start])
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin1").strip())
        kind, code, size = TYPES[header["descr"]]
        shape = tuple(int(n) for n in header["shape"])
        turned = bool(header["fortran_order"]) and len(shape) > 1
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise Failure(2, f"{where}: has a header that this script does not read") from None
    raw = data[start + length :]
    if turned or len(raw) != math.prod(shape) * size:
        raise Failure(2, f"{where}: its bytes are not what its header says")
    return Array(kind, code, shape, raw)


def read_golden(path: str, engine: dict[str, Any]) -> Golden:
    """Read the golden .npz file, and find how to cut it into batches."""
    found: dict[str, dict[str, Array]] = {"input": {}, "output": {}}
    if not os.path.isfile(path):
        raise Failure(2, f"{path}: is not there; pass --no-golden to go without")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                role, _, name = member[: -len(".npy")].partition(":")
                if member.endswith(".npy") and role in found:
                    found[role][name] = parse_npy(archive.read(member), f"{path}: {member}")
    except (OSError, zipfile.BadZipFile) as error:
        raise Failure(2, f"{path}: cannot be read: {error}") from None
    if not found["output"]:
        raise Failure(2, f"{path}: holds no output:NAME arrays")
    total, batch = cut_size(found["input"], engine, path)
    return Golden(found["input"], found["output"], total, batch)


def cut_size(inputs: dict[str, Array], engine: dict[str, Any], path: str) -> tuple[int, int]:
    """Return the number of golden samples, and how many go into one run."""
    profiles = {p["name"]: p for p in engine["profiles"]}
    sizes = set()
    for tensor in engine["inputs"]:
        name = tensor["name"]
        if name not in inputs:
            raise Failure(2, f"{path}: has no input:{name}")
        given = inputs[name]
        if given.kind != tensor["dtype"]:
            raise Failure(2, f"{path}: input:{name} is {given.kind}, not {tensor['dtype']}")
        low = profiles[name]["minimum"] if name in profiles else tensor["shape"]
        high = profiles[name]["maximum"] if name in profiles else tensor["shape"]
        fits = len(given.shape) == len(low) and all(
            a <= n <= b
            for a, n, b in zip(low[1:], given.shape[1:], high[1:])  # noqa: B905 (Python 3.10)
        )
        total = given.shape[0] if given.shape else 1
        batch = min(total, high[0]) if given.shape else 1
        if not fits or batch < (low[0] if low else 1) or total % batch:
            raise Failure(
                2, f"{path}: input:{name} {list(given.shape)}: the engine takes {list(high)}"
            )
        sizes.add((total, batch))
    if len(sizes) != 1:
        raise Failure(2, f"{path}: its inputs differ in their first size")
    return sizes.pop()


def cut(whole: Array, golden: Golden, index: int) -> Array:
    """Return one run's part of an array."""
    if not whole.shape or whole.shape[0] != golden.total:
        return whole
    size = len(whole.raw) // golden.total * golden.batch
    shape = (golden.batch, *whole.shape[1:])
    return whole._replace(shape=shape, raw=whole.raw[index * size : (index + 1) * size])


def numbers(part: Array) -> list[float]:
    if part.code in ("e", "?"):
        count = len(part.raw) // struct.calcsize(part.code)
        return [float(v) for v in struct.unpack(f"<{count}{part.code}", part.raw)]
    values = array.array(part.code)
    values.frombytes(part.raw)
    return [float(v) for v in values]


def write_inputs(engine: dict[str, Any], golden: Golden, index: int, place: Place) -> list[str]:
    """Write one run's inputs as raw files; return trtexec's options for them."""
    files: list[str] = []
    shapes: list[tuple[str, Any]] = []
    for tensor in engine["inputs"]:
        part = cut(golden.inputs[tensor["name"]], golden, index)
        path = place.log(f"input-{len(files)}.bin")
        with open(path, "wb") as file:
            file.write(part.raw)
        files.append(f"{tensor['name']}:{path}")
        shapes.append((tensor["name"], part.shape))
    options = ["--loadInputs=" + ",".join(files)]
    return options + (["--shapes=" + shapes_text(shapes)] if engine["profiles"] else [])


def read_outputs(path: str) -> dict[str, list[float]]:
    """Read --exportOutput, whose nan and inf are written as C writes them."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        text = re.sub(r"-?\bnan\b", "NaN", re.sub(r"\binf\b", "Infinity", text))
        return {item["name"]: [float(v) for v in item["values"]] for item in json.loads(text)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(1, f"trtexec wrote no readable outputs: {error}") from None


def check_golden(
    command: list[str], engine: dict[str, Any], golden: Golden, place: Place
) -> tuple[float, float]:
    """Run the golden inputs; return the largest error, and as a share of the largest output."""
    worst, share = 0.0, 0.0
    for index in range(min(golden.total // golden.batch, MAX_GOLDEN_RUNS)):
        target = place.log("output.json")
        once = [*command, "--exportOutput=" + target, "--iterations=1", "--duration=0"]
        once += ["--warmUp=0", *write_inputs(engine, golden, index, place)]
        code, text = run(once, place.log("golden.log"))
        if code:
            raise Failure(1, f"trtexec cannot run the engine: {last_error(text)}")
        found = read_outputs(target)
        for name, expected in sorted(golden.outputs.items()):
            wanted, values = numbers(cut(expected, golden, index)), found.get(name, [])
            if len(values) != len(wanted):
                raise Failure(1, f"the engine gives no output {name} of the golden size")
            errors = [abs(a - b) for a, b in zip(values, wanted)]  # noqa: B905 (Python 3.10)
            error = math.inf if any(map(math.isnan, values)) else max(errors, default=0.0)
            largest = max((abs(v) for v in wanted), default=0.0)
            worst = max(worst, error)
            share = max(share, error / largest if largest else error)
    return worst, share


# time, clocks ----------------------------------------------------------------------------------


def read_times(path: str) -> list[float]:
    """Read --exportTimes; a call's latency is copy in, compute and copy out, in ms."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
        return [float(row["latencyMs"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(1, f"trtexec wrote no readable times: {error}") from None


def time_engine(
    command: list[str], warmup: int, samples: int, place: Place
) -> tuple[list[float], str]:
    """Return the latency of each call in milliseconds, and the command."""
    target = place.log("times.json")
    timed = [*command, "--exportTimes=" + target, f"--iterations={warmup + samples}"]
    timed += ["--duration=0", f"--warmUp={WARM_UP_MS}"]
    code, text = run(timed, place.log("times.log"))
    if code:
        raise Failure(1, f"trtexec cannot time the engine: {last_error(text)}")
    times = read_times(target)[warmup:]
    if not times:
        raise Failure(1, "trtexec timed no calls")
    return times, quoted(timed)


def first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).replace("\x00", "").strip().split("\n")[0].strip()
    except OSError:
        return ""


def answer_of(command: list[str]) -> str:
    """Return what a tool prints, in one line; nothing where it is missing or refuses."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.decode("utf-8", "replace").splitlines() if not done.returncode else []
    return "; ".join(line.strip() for line in lines if line.strip())


def ask_gpu(fields: str) -> str:
    return answer_of(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader"])


def read_clocks() -> dict[str, str]:
    """Return clock and power readings by their own names."""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    found = {
        "nvidia-smi " + fields: ask_gpu(fields),
        "jetson_clocks": answer_of(["jetson_clocks", "--show"]),
        "l4t": first_line("/etc/nv_tegra_release"),
        "cpu0 kHz": first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
    }
    for place in sorted(glob.glob("/sys/class/devfreq/*")):
        name = os.path.basename(place)
        if any(word in name for word in ("gpu", "gv11b", "ga10b", "emc")):
            for value in ("cur_freq", "max_freq"):
                found[f"{name} {value} Hz"] = first_line(os.path.join(place, value))
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        kind = first_line(os.path.join(zone, "type"))
        if "gpu" in kind.lower():
            found[f"{kind} mC"] = first_line(os.path.join(zone, "temp"))
    return {name: text for name, text in found.items() if text}


def device_name() -> str:
    name = first_line("/proc/device-tree/model") or ask_gpu("name").split(";")[0]
    return name or "unknown device"


def power_mode() -> str:
    mode = answer_of(["nvpmodel", "-q"])
    limit = ask_gpu("power.limit").split(";")[0]
    return mode or (f"power limit {limit}" if limit else "unknown")


# main ------------------------------------------------------------------------------------------


def write_json(path: str, value: Any) -> None:
    partial = path + ".partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
        os.replace(partial, path)
    except OSError as error:
        raise Failure(2, f"{path}: cannot be written: {error}") from None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("description", nargs="?", help="NAME.engine.json (default: the one here)")
    parser.add_argument("--trtexec", help="path of trtexec")
    parser.add_argument("--out", default="measured.json", help="what to write")
    parser.add_argument("--work", help="folder for engine and logs (default: engine-NAME)")
    parser.add_argument("--samples", type=int, help="timed calls (default: the profile's)")
    parser.add_argument("--no-golden", action="store_true", help="do not check the outputs")
    return parser.parse_args(arguments)


def prepare(path: str, engine: dict[str, Any], work: str | None) -> Place:
    """Check the model file and make the working folder."""
    folder = os.path.dirname(os.path.abspath(path))
    model = os.path.join(folder, engine["onnx"])
    check_model(engine, model)
    made = os.path.abspath(work or os.path.join(folder, "engine-" + engine["artifact"]))
    try:
        os.makedirs(made, exist_ok=True)
    except OSError as error:
        raise Failure(2, f"{made}: cannot be made: {error}") from None
    return Place(folder, model, made)


def measure(options: argparse.Namespace) -> int:
    """Do the whole job; return the exit code."""
    path = options.description or default_description()
    engine = read_description(path)
    samples = engine["samples"] if options.samples is None else options.samples
    if samples < 1:
        raise Failure(2, "--samples is at least 1")
    place = prepare(path, engine, options.work)
    golden = None
    if not options.no_golden:
        golden = read_golden(os.path.join(place.folder, engine["golden"]), engine)
    program = find_trtexec(options.trtexec)
    trtexec = inspect_trtexec(program, engine["minimum_tensorrt"], place.log("help.log"))
    plan, build_log = build(engine, trtexec, place)
    load = [trtexec.path, "--loadEngine=" + plan]
    worst, ok = None, None
    if golden is not None:
        worst, share = check_golden(load, engine, golden, place)
        ok = share <= engine["tolerance"]
        say(
            f"golden outputs: largest error {worst:.4g}, {100 * share:.2f} % of the largest value "
            f"({100 * engine['tolerance']:g} % is allowed)"
        )
    if engine["profiles"]:
        load.append(
            "--shapes=" + shapes_text([(p["name"], p["optimum"]) for p in engine["profiles"]])
        )
    elif golden is not None:
        load += write_inputs(engine, golden, 0, place)
    clocks = {"before: " + name: text for name, text in read_clocks().items()}
    times, command = time_engine(load, engine["warmup"], samples, place)
    clocks.update(("after: " + name, text) for name, text in read_clocks().items())
    version = dotted(trtexec.version or decode_version(build_log)) or "of unknown version"
    result = {
        "artifact": engine["artifact"],
        "sha256": engine["sha256"],
        "device": device_name(),
        "runtime": "TensorRT " + version,
        "clocks": clocks,
        "power_mode": power_mode(),
        "samples_ms": times,
        "golden_max_error": worst if worst is not None and math.isfinite(worst) else None,
        "golden_ok": ok,
        "engine_bytes": os.path.getsize(plan),
        "command": command,
        "layers": read_layers(place.log("layers.json")),
        "schema": SCHEMA,
    }
    write_json(options.out, result)
    median = sorted(times)[len(times) // 2]
    say(f"{engine['artifact']} on {result['device']}: median {median:.4f} ms of {len(times)} calls")
    say(f"wrote {options.out}; at home: edgeopt report BUNDLE --attach {options.out}")
    return 1 if ok is False else 0


def main(arguments: list[str] | None = None) -> int:
    try:
        return measure(parse_arguments(arguments))
    except Failure as failure:
        print(f"build_engine: {failure}", file=sys.stderr)
        return failure.code


if __name__ == "__main__":
    sys.exit(main())
