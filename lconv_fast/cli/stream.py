"""`lconv-fast stream`: a saved model over a volume in a file, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lconv_fast.cli.shared import console, fail, need


class Converted:
    """A volume whose slices come as numbers of the model's type."""

    def __init__(self, array: Any, dtype: Any, channels: int | None = None) -> None:
        self.array, self.dtype, self.channels = array, dtype, channels
        shape = tuple(int(n) for n in array.shape)
        # Channels stand last in the file.
        self.shape = shape if channels is None else (shape[-1], *shape[:-1])

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        import numpy as np

        if self.channels is None:
            return np.asarray(self.array[index], dtype=self.dtype)
        moved = np.asarray(self.array[(*index[1:], index[0])], dtype=self.dtype)
        return np.moveaxis(moved, -1, 0)


@dataclass(frozen=True)
class Format:
    """How a kind of file is read, and made to be written by slices."""

    packages: tuple[str, ...]
    read: Callable[[Path], Any]
    create: Callable[[Path, tuple[int, ...], Any, Path, bool], tuple[Any, Callable[[], None]]]  # array, what ends it


def _read_npy(path: Path) -> Any:
    import numpy as np

    return np.load(path, mmap_mode="r")


def _create_npy(path: Path, shape: tuple[int, ...], dtype: Any, source: Path, again: bool) -> Any:
    import numpy as np

    array = np.lib.format.open_memmap(path, "r+") if again else np.lib.format.open_memmap(path, "w+", dtype, shape)
    return array, array.flush


def _read_tif(path: Path) -> Any:
    import tifffile

    try:
        return tifffile.memmap(path, mode="r")
    except ValueError:  # compressed: there is nothing to map
        return tifffile.imread(path)


def _create_tif(path: Path, shape: tuple[int, ...], dtype: Any, source: Path, again: bool) -> Any:
    import tifffile

    if again:
        array = tifffile.memmap(path, mode="r+")
    else:
        array = tifffile.memmap(path, shape=shape, dtype=dtype, bigtiff=True, photometric="minisblack")
    return array, array.flush


def _read_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_array(path, mode="r")


def _create_zarr(path: Path, shape: tuple[int, ...], dtype: Any, source: Path, again: bool) -> Any:
    import zarr

    if again:
        return zarr.open_array(path, mode="r+"), lambda: None
    return zarr.create_array(path, shape=shape, dtype=dtype), lambda: None


def _read_nii(path: Path) -> Any:
    import nibabel

    image: Any = nibabel.load(path)
    return image.dataobj


def _create_nii(path: Path, shape: tuple[int, ...], dtype: Any, source: Path, again: bool) -> Any:
    """Written as .npy first: a .nii holds its channels last, and perhaps compressed."""
    import nibabel
    import numpy as np

    first = path.with_name(path.name + ".npy")
    array, _ = _create_npy(first, shape, dtype, source, again)
    image: Any = nibabel.load(source) if _suffix(source) in (".nii", ".nii.gz") else None
    place = np.eye(4) if image is None else image.affine

    def end() -> None:
        small = array.astype(np.uint8) if array.dtype == np.int64 and array.max(initial=0) < 256 else array
        data = np.moveaxis(small, 0, -1) if array.ndim == 4 else small
        nibabel.save(nibabel.Nifti1Image(data, place, dtype=data.dtype), path)
        first.unlink()

    return array, end


FORMATS: dict[str, Format] = {
    ".npy": Format((), _read_npy, _create_npy),
    ".tif": Format(("tifffile",), _read_tif, _create_tif),
    ".tiff": Format(("tifffile",), _read_tif, _create_tif),
    ".zarr": Format(("zarr",), _read_zarr, _create_zarr),
    ".nii": Format(("nibabel",), _read_nii, _create_nii),
    ".nii.gz": Format(("nibabel",), _read_nii, _create_nii),
}


def _suffix(path: Path) -> str:
    return next((s for s in sorted(FORMATS, key=len, reverse=True) if path.name.endswith(s)), path.suffix)


def _format(name: str, path: Path) -> Format:
    if _suffix(path) not in FORMATS:
        raise ValueError(f"{name}: expected a file of {', '.join(FORMATS)}, got {path}")
    return FORMATS[_suffix(path)]


def load_model(path: Path) -> Any:
    """An nn.Module from torch.save, in eval mode, or the module of a program of torch.export."""
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"model: expected a file, got {path}")
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        for node in module.graph.nodes:  # which may not be traced again
            if node.target is torch.ops.aten.detach_.default:
                node.target = torch.ops.aten.detach.default
        module.recompile()
        return module
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ModuleNotFoundError) as error:
        raise ValueError(f"model: {path} was saved with classes that are not here: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a saved nn.Module, got {type(model).__name__}; a state dict has no operators")
    return model.eval()


def stream(
    model: Annotated[
        Path, typer.Argument(help="A .pt2 of torch.export, or a .pt of torch.save(module); trusted ones.")
    ],
    volume: Annotated[Path, typer.Argument(help="A .npy, .tif, .zarr, .nii or .nii.gz file.")],
    out: Annotated[Path, typer.Option(help="The result, a file of these kinds.")],
    tile: Annotated[str | None, typer.Option(help="Extents of a tile, as 128,128,128.")] = None,
    memory: Annotated[str, typer.Option(help="Chooses the tile, where it is not given.")] = "1 GiB",
    spill: Annotated[Path | None, typer.Option(help="Folder for intermediate data; the system's by default.")] = None,
    transform: Annotated[str, typer.Option(help="Of the prediction: none, argmax or softmax.")] = "none",
    resume: Annotated[bool, typer.Option(help="Goes on where an interrupted run stopped.")] = False,
    explain: Annotated[bool, typer.Option(help="Prints passes, bytes and memory, and stops.")] = False,
) -> None:
    """Runs a saved model over a volume larger than memory; exact, tile by tile.

    Numbers are read as the model's type. Channels, if any, come first in .npy, .tif and .zarr, and last in .nii.
    """
    try:
        if transform not in ("none", "argmax", "softmax"):
            raise ValueError(f"transform: expected none, argmax or softmax, got {transform!r}")
        source, target = _format("volume", volume), _format("out", out)
        need(*source.packages, *target.packages)
        if not volume.exists():
            raise FileNotFoundError(f"volume: expected a file, got {volume}")
        partial = out.with_name(out.name + ".npy") if _suffix(out) in (".nii", ".nii.gz") else out
        if out.exists() and volume.exists() and out.samefile(volume):
            raise FileExistsError(f"out: {out} is the volume; expected another file for the result")
        if not out.parent.is_dir():
            raise FileNotFoundError(f"out: expected a folder {out.parent}")
        if resume and not partial.exists():
            raise FileNotFoundError(f"resume: expected the result of an interrupted run in {partial}")
        if out.exists() and not resume:
            raise FileExistsError(f"out: {out} is there already; remove it, or go on with --resume")
        _run(
            load_model(model),
            source.read(volume),
            source,
            target,
            volume,
            out,
            tile,
            memory,
            spill,
            transform,
            resume,
            explain,
        )
    except (OSError, TypeError, ValueError, MemoryError) as error:
        fail(error)


def _run(
    network: Any,
    array: Any,
    source: Format,
    target: Format,
    volume: Path,
    out: Path,
    tile: str | None,
    memory: str,
    spill: Path | None,
    transform: str,
    resume: bool,
    explain: bool,
) -> None:
    import torch

    import lconv_fast
    from lconv_fast.regions.plan import float_type

    dtype = torch.empty(0, dtype=float_type(network)).numpy().dtype
    sizes = None if tile is None else _sizes(tile)
    streamed = lconv_fast.stream(network, sizes, spill, memory if sizes is None else None)
    axes = streamed.ndim
    last = source is FORMATS[".nii"] or source is FORMATS[".nii.gz"]
    data = Converted(array, dtype, array.shape[-1] if last and len(array.shape) == axes + 1 else None)
    if explain:
        streamed.explain(data)
        return
    change = None if transform == "none" else transform
    shape, kind = streamed.result(data, change)
    result, end = target.create(out, shape, torch.empty(0, dtype=kind).numpy().dtype, volume, resume)
    streamed.predict(data, result, change, resume=resume)
    end()
    console.print(f"written: {out} {shape} {str(kind).removeprefix('torch.')}", markup=False, highlight=False)


def _sizes(tile: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in tile.replace("x", ",").split(","))
    except ValueError:
        raise ValueError(f"tile: expected integers as 128,128,128, got {tile!r}") from None
