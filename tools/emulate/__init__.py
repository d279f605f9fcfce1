"""Runs the GPU kernels as compiled, without a GPU: a stand-in driver behind Triton's own launcher, and an interpreter
of the PTX in numpy that checks bounds, alignment, order and what was never written. See docs/emulator.md."""
