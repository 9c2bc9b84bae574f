"""`python -m benchmarks [NAME ...] [--json FILE]`: run the benchmarks of these names (all of them without a name), print their tables."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd

from benchmarks.timing import floor

FOLDER = Path(__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "__main__", "timing", "numpyro_vae"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--json", type=Path, help="also save the tables to this file")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r} (benchmarks: {', '.join(NAMES)})")
    rates = floor()
    print("this machine:", ", ".join(f"{rate:.0f} {name}" for name, rate in rates.items()), flush=True)
    tables: dict[str, object] = {"floor": rates}
    for name in options.names or NAMES:
        found = []
        for row in import_module(f"benchmarks.{name}").rows():
            print(".", end="", file=sys.stderr, flush=True)
            found.append(row)
        tables[name] = found
        table = pd.DataFrame(found).astype(object).fillna("")
        print(f"\n{name}\n{table.to_string(index=False, float_format=lambda v: f'{v:.4g}')}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
