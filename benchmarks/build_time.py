"""Print how long a build takes, stage by stage, each in a process of its own.

python benchmarks/build_time.py [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = tuple(("zoo:vit", profile) for profile in ("orin", "a100", "phone-npu", "host"))


def one(model: str, profile: str, out: Path) -> tuple[float, dict[str, float]]:
    """Build once; return the wall time and the seconds of each stage."""
    command = [sys.executable, "-m", "edgeopt", "build", model, "--profile", profile]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out), "--json"], capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - started
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return wall, json.loads(done.stdout)["seconds"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    print("| model | profile | wall s (median) | stages s (median) |")
    print("|---|---|---|---|")
    for model, profile in JOBS:
        walls, stages = [], []
        with tempfile.TemporaryDirectory() as work:
            for _ in range(runs):
                wall, seconds = one(model, profile, Path(work) / "bundle")
                walls.append(wall)
                stages.append(seconds)
        names = ", ".join(
            f"{name} {statistics.median(s[name] for s in stages):.1f}" for name in stages[0]
        )
        print(f"| {model} | {profile} | {statistics.median(walls):.1f} | {names} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
