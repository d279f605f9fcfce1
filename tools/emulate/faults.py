"""What the emulator refuses to run, or finds wrong in what ran."""

from __future__ import annotations


class Fault(RuntimeError):
    """A kernel did what no card would do silently: an access outside its tensors, misaligned, unordered or unset."""


class NotEmulated(NotImplementedError):
    """An instruction or a form of one that this emulator does not know."""
