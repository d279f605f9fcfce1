"""What a streamed step will do, before it does it."""

from __future__ import annotations

from dataclasses import dataclass

from lconv_fast.streaming.budget import Costs
from lconv_fast.streaming.passes import Cut
from lconv_fast.streaming.store import gibibytes


@dataclass(frozen=True)
class StreamExplanation:
    """Passes, bytes, halo overhead and memory of `forward_backward` and of `predict`; str() is a table."""

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    halo: tuple[tuple[int, int], ...]
    cuts: tuple[Cut, ...]
    training: Costs
    prediction: Costs

    @property
    def memory(self) -> int:
        """Bytes of tensors that a step holds at most, by count."""
        return self.training.memory

    @property
    def disk(self) -> int:
        """Bytes on disk at most."""
        return self.training.disk

    def __str__(self) -> str:
        tiles = self.training.passes[-1].tiles if self.training.passes else 0
        lines = [f"volume {self.shape} in tiles of {self.tile}: {tiles} in the first passes, halo {self.halo} in all"]
        for name, one in (("forward_backward", self.training), ("predict", self.prediction)):
            space = f"{gibibytes(one.memory)} of memory, {gibibytes(one.disk)} on disk"
            lines += ["", f"{name}: {space}, {one.recomputed:.2f} times the operations of one piece"]
            lines.append(f"  {'pass':<22}{'tiles':>6}{'read':>12}{'written':>12}{'halo':>8}  computes")
            for row in one.passes:
                share = f"{100 * (row.overhead - 1):.0f} %"
                lines.append(
                    f"  {row.name:<22}{row.tiles:>6}{gibibytes(row.read):>12}{gibibytes(row.written):>12}{share:>8}  "
                    f"{row.computed}"
                )
        if self.cuts:
            lines += ["", "cuts at sums over space:"]
        for cut in self.cuts:
            name = cut.value.path or cut.value.name
            lines.append(f"  {name} {cut.value.shape}: {'written' if cut.spilled else 'computed again'}: {cut.reason}")
        return "\n".join(lines)
