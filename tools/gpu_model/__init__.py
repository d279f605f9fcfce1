"""A model of how fast the marching kernels are, read from their machine code: no GPU is needed, and none was asked.

    python -m tools.gpu_model [--only "forward 2D"] [--json FILE] [--compare FILE]

One sub-partition of a multiprocessor is simulated through the kernel's main loop: the stall counts and scoreboards that
the assembler wrote, the pipes, the tensor core, a memory of given latency and bandwidth; then whole launches by waves.
"""
