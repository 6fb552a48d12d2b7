"""Run every example as its reader would, each under a time bound, and report what failed.

An example passes when it exits with 0 in time and leaves no process behind. Files that start with an underscore are
parts of other examples. Usage: ``python -m scripts.run_examples [NAME ...]``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from scripts.processes import RUN_MARK, end_processes, marked_processes

ROOT = Path(__file__).resolve().parent.parent
TIME_BOUND_S = 240.0
GRACE_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run the examples named in `argv`, or all of them, and return the number that failed."""
    parser = argparse.ArgumentParser(description="Run the examples, each under a time bound.")
    parser.add_argument("names", nargs="*", help="names of examples without `.py`; default: all")
    parser.add_argument("--time-bound", type=float, default=TIME_BOUND_S, metavar="SECONDS")
    arguments = parser.parse_args(argv)

    examples = find_examples(arguments.names)
    failures = 0
    for example in examples:
        started = time.monotonic()
        problem = run_example(example, arguments.time_bound)
        print(f"{'FAILED' if problem else 'ok    '} {example.name:<32} {time.monotonic() - started:6.1f} s", flush=True)
        if problem:
            failures += 1
            print(problem, flush=True)
    print(f"examples: {len(examples) - failures} passed, {failures} failed", flush=True)
    return failures


def find_examples(names: list[str]) -> list[Path]:
    """Return the examples' files in the order of their names.

    Raises:
        SystemExit: A name is not that of an example, or there is none at all.
    """
    known = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py")) if not path.name.startswith("_")}
    unknown = [name for name in names if name not in known]
    if unknown or not known:
        raise SystemExit(
            f"no example named {', '.join(unknown) or 'anything'}; there are: {', '.join(known) or 'none'}"
        )
    return [known[name] for name in names] if names else list(known.values())


def run_example(example: Path, time_bound_s: float) -> str | None:
    """Run one example in a scratch directory of its own; return what is wrong with it, or None."""
    mark = uuid.uuid4().hex
    scratch = Path(tempfile.mkdtemp(prefix="et-", dir="/tmp"))
    environment = {
        **os.environ,
        RUN_MARK: mark,
        "ELASTIC_TRAIN_HOME": str(scratch / "home"),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    output_path = scratch / "output"
    try:
        with output_path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(example)], cwd=scratch, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                code: int | None = process.wait(time_bound_s)
            except subprocess.TimeoutExpired:
                code = None
                process.kill()
                process.wait()
        left = end_processes(marked_processes(mark), grace_s=GRACE_S)
        tail = output_path.read_text(errors="replace")[-6000:]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if code is None:
        return f"did not end within {time_bound_s:.0f} s; its output ended with:\n{tail}"
    if code != 0:
        return f"exit code {code}; its output ended with:\n{tail}"
    if left:
        return "left processes behind:\n" + "\n".join(left)
    return None


if __name__ == "__main__":
    sys.exit(main())
