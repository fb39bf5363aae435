"""Plants the bugs of some families, or of all, and prints what finds them.

    python -m tests.mutants.device rope norm [--only TEXT]"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.device.workshop import Finding, Mutant, Workshop, families

MISSED, UNTRIED = "NOT FOUND", "COULD NOT BE TRIED"


def tried(shop: Workshop, mutant: Mutant) -> Finding:
    try:
        return shop.found(mutant)
    except (AssertionError, RuntimeError) as error:          # the others are still of interest
        return Finding(f"{UNTRIED}: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=" ".join(families()))
    parser.add_argument("--only", default="", help="mutants whose story or file contains this")
    given = parser.parse_args(argv)
    seconds, spent, missed = [], 0.0, []
    for name in given.families or families():
        with tempfile.TemporaryDirectory(prefix="cuda-nn-mutants-") as folder:
            shop = Workshop(name, Path(folder))
            for mutant in shop.made.MUTANTS:
                if given.only not in mutant.story and given.only not in mutant.file:
                    continue
                finding = tried(shop, mutant)
                seconds.append(finding.seconds)
                said = finding.said or MISSED
                print(f"{name:18s} {finding.seconds:5.1f} s  {mutant.story:60s} {said}", flush=True)
                if said.startswith((MISSED, UNTRIED)):
                    missed.append(f"{name}: {mutant.story}")
            spent += shop.seconds
    print(f"{len(seconds) - len(missed)} of {len(seconds)} found; processor seconds: {sum(seconds):.0f}, and "
          f"{spent:.0f} for the healthy kernels")
    for story in missed:
        print(f"not found: {story}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
