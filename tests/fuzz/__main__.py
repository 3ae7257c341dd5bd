"""`python -m tests.fuzz [--seconds N] [--seed N] [--input HEX] [TARGET ...]`"""

from __future__ import annotations

import argparse
import random
import sys

from tests.fuzz.engine import Failure, fuzz, once
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Run decoders against generated input."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (60)")
    parser.add_argument("--seed", type=int, help="of the generator; random if not given")
    parser.add_argument("--input", metavar="HEX", help="run the targets on these bytes only")
    args = parser.parse_args()
    unknown = [name for name in args.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    failed = False
    for name in args.targets or TARGETS:
        target = TARGETS[name]
        if args.input is not None:
            print(f"{name}: {once(target, bytes.fromhex(args.input), seed)}")
            continue
        try:
            print(fuzz(target, args.seconds, seed), flush=True)
        except Failure as exc:
            failed = True
            print(f"FAILED (--seed {seed})\n{exc}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
