from collections.abc import Sequence

def cpu_capability() -> str: ...
def kernels() -> list[str]: ...
def fused_multiply_add_rate(seconds: float) -> float: ...
def second_level_cache_bytes() -> int: ...
def build_info() -> dict[str, str]: ...
def plan(
    generators: int,
    batch: int,
    kind: int,
    taps: Sequence[int],
    tap_weights: Sequence[float],
    components: Sequence[int],
    spatial: Sequence[int],
    padding_mode: int,
    halo: Sequence[int],
    origin: Sequence[int],
    full: Sequence[int],
    coordinate_scale: float | None,
    stride: Sequence[int],
    groups: int,
) -> dict[str, dict[str, float]]: ...
