"""Plants the bugs of some families, or of all, and prints what finds them.

    python -m tests.mutants.native core rows [--only TEXT]"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.native.workshop import Workshop, families, mutants


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=" ".join(families()))
    parser.add_argument("--only", default="", help="mutants whose story or file contains this")
    given = parser.parse_args(argv)
    missed = []
    with tempfile.TemporaryDirectory(prefix="cuda-nn-mutants-") as folder:
        shop = Workshop(Path(folder))
        for name in given.families or families():
            for mutant in mutants(name):
                if given.only not in mutant.story and given.only not in mutant.file:
                    continue
                began = time.perf_counter()
                said = shop.found(mutant) or "NOT FOUND"
                took = time.perf_counter() - began
                print(f"{name:10s} {took:5.1f} s  {mutant.story:62s} {said}", flush=True)
                if said == "NOT FOUND":
                    missed.append(f"{name}: {mutant.story}")
    for story in missed:
        print(f"not found: {story}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
