"""Prints what the model says of each layer; with --compare exits with 1 where it got worse by a tenth."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tools.emulate.chips import CHIPS
from tools.emulate.driver import Launch, StandIn

WORSE = 1.1
FIGURES = Path(__file__).with_name("figures.json")


def regressions(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Layers whose predicted time or instructions grew by a tenth, that spill now, or that are gone."""
    found = []
    for layer, old in before.items():
        new = now.get(layer)
        if new is None:
            found.append(f"{layer}: no longer predicted")
            continue
        for card in ("H200", "H100"):
            a, b = old[card]["milliseconds"], new[card]["milliseconds"]
            if b > WORSE * a:
                found.append(f"{layer}: {b:.3f} ms on {card}, was {a:.3f}")
        a, b = old["instructions of an element"], new["instructions of an element"]
        if b > WORSE * a:
            found.append(f"{layer}: {b} instructions of an element, was {a}")
        if new["stack"] > old["stack"]:
            found.append(f"{layer}: {new['stack']} bytes of registers spilled, was {old['stack']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_model", description=__doc__)
    parser.add_argument("--only", default="", help="layers whose text holds this")
    parser.add_argument("--json", type=Path, help="adds these figures, by version of Triton, to a file")
    parser.add_argument("--compare", type=Path, help=f"such a file, as {FIGURES.name} beside this one")
    options = parser.parse_args()
    recorded: list[Launch] = []
    StandIn(CHIPS["sm_90"], recorded.append)

    import triton

    from tools.gpu_model.layers import LAYERS
    from tools.gpu_model.predict import predict, tool

    if tool("cuobjdump") is None:
        print("skipped: this build of Triton has no cuobjdump to read machine code with")
        return 0
    now: dict[str, Any] = {}
    for layer in LAYERS:
        if options.only not in str(layer):
            continue
        try:
            now[str(layer)] = f = predict(layer, layer.launches(recorded))
        except ValueError as error:
            print(f"{layer!s:26s} not predicted: {error}", flush=True)
            continue
        cards = "  ".join(
            f"{card} {f[card]['milliseconds']:.2f} ms {f[card]['of the floor']:.2f} of the floor"
            f" ({f[card]['in whole waves']:.2f} in whole waves)"
            for card in ("H200", "H100")
        )
        print(
            f"{layer!s:26s} {f['registers']:3d} registers x {f['programs of a multiprocessor']} stack {f['stack']:3d} "
            f"shared {f['shared'] >> 10:3d} KiB {f['instructions of an element']:5.1f} instructions  {cards}  "
            f"limit: {f['H200']['limit']}",
            flush=True,
        )
    version = triton.__version__
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {version: now}, indent=1) + "\n")
    if options.compare:
        before = json.loads(options.compare.read_text()).get(version)
        if before is None:
            print(f"skipped: {options.compare} has no figures of Triton {version}")
            return 0
        worse = regressions({k: v for k, v in before.items() if options.only in k}, now)
        print("\n".join(["worse by a tenth:", *worse]) if worse else "nothing is worse by a tenth")
        return 1 if worse else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
