"""Runs fuzz targets: `python -m tests.fuzz [TARGET...] --inputs 1000000`.

Inputs are mutations of the corpus under a fixed seed; with `--atheris` (`pip install atheris`, where it has a wheel)
they are guided by coverage. A finding is an exception, an input that takes longer than a second, or memory that grows:
it is printed with the input, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import random
import resource
import sys
import time

from tests.fuzz.corpus import make, mutate
from tests.fuzz.targets import TARGETS, Target

SLOW_S = 1.0
HANG_S = 20.0
GROWTH_KIB = 300_000


def _rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(name: str, target: Target, inputs: int, seed: int) -> str | None:
    """Run a target with mutations of its corpus; return what was found."""
    rng = random.Random(f"{name} {seed}")
    corpus = make(name)
    before = 0
    for n in range(inputs):
        data = corpus[n] if n < len(corpus) else mutate(rng, corpus)
        if n % 1000 == 0:
            faulthandler.dump_traceback_later(HANG_S, exit=True)
        started = time.perf_counter()
        try:
            target(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            return f"{type(error).__name__}: {error}\n{data!r}"
        took_s = time.perf_counter() - started
        if took_s > SLOW_S:
            return f"{took_s:.1f} s\n{data!r}"
        if n == 10_000:
            before = _rss_kib()
        elif before and n % 10_000 == 0 and _rss_kib() - before > GROWTH_KIB:
            return f"memory grew by {_rss_kib() - before:,} KiB in {n:,} inputs"
    faulthandler.cancel_dump_traceback_later()
    return None


def run_guided(name: str, inputs: int, seed: int) -> None:
    """Run a target under atheris, which ends the process."""
    atheris = importlib.import_module("atheris")  # optional, so nothing else may need it
    with atheris.instrument_imports(include=["services.edge", "services.auth.domain", "services.common.topics"]):
        for module in [loaded for loaded in sys.modules if loaded.startswith(("services.", "tests.fuzz.targets"))]:
            del sys.modules[module]
        from tests.fuzz.targets import TARGETS as INSTRUMENTED  # noqa: PLC0415 - loaded anew
    atheris.Setup(
        [sys.argv[0], f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=4000", "-timeout=5"], INSTRUMENTED[name]
    )
    atheris.Fuzz()


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; one target")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    # A line for each refused connection would be most of the time.
    logging.getLogger("services.edge.transports").setLevel(logging.ERROR)
    if options.atheris:
        run_guided(names[0], options.inputs, options.seed)
        return 0
    status = 0
    for name in names:
        started = time.monotonic()
        finding = run(name, TARGETS[name], options.inputs, options.seed)
        took_s = time.monotonic() - started
        sys.stdout.write(f"{name}: {options.inputs:,} inputs, {took_s:.0f} s: {finding or 'nothing found'}\n")
        sys.stdout.flush()
        status |= finding is not None
    return status


if __name__ == "__main__":
    sys.exit(main())
