"""What every benchmark shares: its arguments, its statistics, what machine it ran on, and how it reports.

A benchmark ends by calling :func:`finish`, which prints one JSON object as the last line and writes it
to ``--json PATH``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
_VERSIONS_OF = ("torch", "ray", "horovod", "tensorflow-cpu", "numpy", "grpcio")


def parse_arguments(
    description: str,
    *,
    repeats: int = 10,
    argv: Sequence[str] | None = None,
    extend: Callable[[argparse.ArgumentParser], object] | None = None,
) -> argparse.Namespace:
    """Parse the arguments that every benchmark takes: `--repeats N`, `--json PATH` and `--quick`.

    Args:
        description: The first line of the help; usually the module's docstring.
        repeats: How often each thing is measured unless the caller says otherwise.
        argv: The arguments; default: those of the process.
        extend: Called with the parser, to add arguments of the benchmark's own.
    """
    parser = argparse.ArgumentParser(description=description.strip().partition("\n")[0])
    parser.add_argument("--repeats", type=_positive, default=repeats, help="measurements of each thing (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures to this file, too")
    parser.add_argument("--quick", action="store_true", help="two measurements of each: does it run at all?")
    if extend is not None:
        extend(parser)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.repeats = min(arguments.repeats, 2)
    return arguments


def median(samples: Iterable[float]) -> float:
    """Return the median."""
    return percentile(samples, 50.0)


def percentile(samples: Iterable[float], percent: float) -> float:
    """Return a percentile, linearly interpolated between the two nearest samples.

    Raises:
        ValueError: There are no samples.
    """
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples to take a percentile of: was anything measured?")
    position = (len(ordered) - 1) * percent / 100.0
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(samples: Iterable[float]) -> dict[str, float | int]:
    """Return count, median, 10th and 90th percentile, best and worst of samples where smaller is better."""
    values = list(samples)
    return {
        "count": len(values),
        "median": median(values),
        "p10": percentile(values, 10.0),
        "p90": percentile(values, 90.0),
        "best": min(values),
        "worst": max(values),
    }


def describe_machine() -> dict[str, Any]:
    """Return what a reader must know of the machine and the versions to judge the figures."""
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def finish(name: str, figures: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Print all figures as one JSON object, the last line of a benchmark, and write them where `--json` says."""
    report = {
        "benchmark": name,
        "repeats": arguments.repeats,
        "figures": _rounded(dict(figures)),
        "machine": describe_machine(),
    }
    line = json.dumps(report)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(line + "\n")
    print(line, flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _rounded(value: Any) -> Any:
    """Return the value with floats to 6 significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"
