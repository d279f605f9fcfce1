"""The PTX interpreter on small kernels of known results and known errors."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.emulate.faults import Fault, NotEmulated
from tools.emulate.launch import execute
from tools.emulate.matrix import FRAGMENTS, descriptor_places
from tools.emulate.numbers import from_bfloat16, to_bfloat16
from tools.emulate.ptx import parse

HEAD = """
.visible .entry kernel(
  .param .u64 .ptr .global .align 1 source,
  .param .u64 .ptr .global .align 1 target
)
{
  ld.param.b64 %rd1, [source];
  ld.param.b64 %rd2, [target];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  shl.b32 %r3, %r1, 2;
  add.s32 %r4, %r3, global_smem;
"""


def run(body: str, source: torch.Tensor, target: torch.Tensor, programs=1, threads=64, shared=256) -> torch.Tensor:
    program = parse(HEAD + body + "\n  ret;\n}\n")
    parameters = {"source": np.uint64(source.data_ptr()), "target": np.uint64(target.data_ptr())}
    execute(program, parameters, (source, target), (programs, 1, 1), threads, shared)
    return target


def numbers(count: int = 64) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.int32) * 0x01030507


def of(body: str) -> torch.Tensor:
    """What `body` makes of %r5 = source[thread] in %r6."""
    text = f"ld.global.b32 %r5, [%rd4];\n{body}\nst.global.b32 [%rd5], %r6;"
    return run(text, numbers(), torch.zeros(64, dtype=torch.int32))


def test_arithmetic_against_integers_of_python():
    x = [int(v) for v in numbers()]

    def wrapped(v: int) -> int:
        return (v + 2**31) % 2**32 - 2**31

    def turned(v: int) -> int:
        return int.from_bytes((v % 2**32).to_bytes(4, "big"), "little")

    thread = range(64)
    for body, expected in (
        ("mul.lo.s32 %r6, %r5, %r5;", [wrapped(v * v) for v in x]),
        ("mul.hi.u32 %r6, %r5, %r5;", [(v % 2**32) ** 2 >> 32 for v in x]),
        ("mul.hi.s32 %r6, %r5, %r5;", [wrapped(v * v >> 32) for v in x]),
        (
            "cvt.u16.u32 %rs1, %r5; mul.hi.u16 %rs2, %rs1, 21846; cvt.u32.u16 %r6, %rs2;",
            [(v % 2**16) * 21846 >> 16 for v in x],
        ),
        ("bfe.s32 %r6, %r5, 4, 4;", [wrapped(((v >> 4 & 15) ^ 8) - 8) for v in x]),
        ("sub.s32 %r7, %r1, 9; div.s32 %r6, %r7, 4;", [int((t - 9) / 4) for t in thread]),
        ("sub.s32 %r7, %r1, 9; rem.s32 %r6, %r7, 4;", [(t - 9) - 4 * int((t - 9) / 4) for t in thread]),
        ("sub.s32 %r7, %r1, 9; shr.s32 %r6, %r7, 1;", [(t - 9) >> 1 for t in thread]),
        ("shl.b32 %r6, %r5, 33;", [0] * 64),
        ("prmt.b32 %r6, %r5, 0, 0x0123U;", [wrapped(turned(v)) for v in x]),
        ("setp.lt.s32 %p1, %r1, 7; selp.b32 %r6, 5, 6, %p1;", [5 if t < 7 else 6 for t in thread]),
        ("shfl.sync.bfly.b32 %r6, %r1, 3, 31, -1;", [t ^ 3 for t in thread]),
        ("lop3.b32 %r6, %r5, %r1, 3, 0xca;", [wrapped((v & t) | (~v & 3)) for v, t in zip(x, thread, strict=True)]),
    ):  # fmt: skip
        assert of(body).tolist() == expected, body


def test_rounding_to_bfloat16_is_that_of_pytorch():
    x = torch.randn(4096) * torch.logspace(-30, 30, 4096)
    bits = to_bfloat16(x.numpy())
    assert (from_bfloat16(bits) == x.bfloat16().float().numpy()).all()


def test_threads_part_and_meet_again():
    body = """
      mov.b32 %r6, 0;
      mov.b32 %r7, %r1;
    $L1:
      setp.eq.b32 %p1, %r7, 0;
      @%p1 bra $L2;
      add.s32 %r6, %r6, %r7;
      add.s32 %r7, %r7, -1;
      bra.uni $L1;
    $L2:
      shfl.sync.bfly.b32 %r6, %r6, 1, 31, -1;"""
    sums = [t * (t + 1) // 2 for t in range(64)]
    assert of(body).tolist() == [sums[t ^ 1] for t in range(64)]


def test_programs_run_in_groups_of_any_size():
    body = (
        "mad.lo.s32 %r5, %r2, 64, %r1; mul.wide.u32 %rd6, %r5, 4; add.s64 %rd7, %rd2, %rd6; st.global.b32 [%rd7], %r5;"
    )
    target = run(body, numbers(), torch.zeros(300 * 64, dtype=torch.int32), programs=300)
    assert target.tolist() == list(range(300 * 64))


PASSES = (
    "st.shared.b32 [%r4], %r1; bar.sync 0; xor.b32 %r5, %r4, 128; ld.shared.b32 %r6, [%r5]; st.global.b32 [%rd5], %r6;"
)
FAULTS = {
    "no barrier before a read": (PASSES.replace("bar.sync 0;", ""), "another warp writes", 1),
    "no barrier before a write": (PASSES + "st.shared.b32 [%r4], %r6;", "another warp reads", 1),
    "two writers": ("and.b32 %r5, %r4, -129; st.shared.b32 [%r5], %r1;", "two warps write different values", 1),
    "a part never written": ("setp.lt.s32 %p1, %r1, 63;" + PASSES.replace("st.s", "@%p1 st.s", 1), "never written", 1),
    "outside shared memory": ("st.shared.b32 [%r4+4], %r1;", "256 of 256 bytes", 1),
    "misaligned shared": ("st.shared.b32 [%r4+2], %r1;", "misaligned", 1),
    "before a tensor": ("ld.global.b32 %r6, [%rd1+-4];", "tensor", 1),
    "after a tensor": ("ld.global.b32 %r6, [%rd4+4];", "4 bytes after a tensor", 1),
    "misaligned": ("ld.global.b64 %rd6, [%rd4];", "misaligned", 1),
    "a barrier for some": ("setp.lt.s32 %p1, %r1, 32; @%p1 bra $L1; bar.sync 0;\n$L1:", "not by others", 1),
    "two programs write": ("st.global.b32 [%rd5], %r2;", "another program writes", 2),
    "one reads what another writes": (
        "setp.eq.b32 %p1, %r2, 0; @%p1 st.global.b32 [%rd5], %r2; @!%p1 ld.global.b32 %r6, [%rd5];",
        "another program",
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_noticed(name):
    body, message, programs = FAULTS[name]
    with pytest.raises(Fault, match=message):
        run(body, numbers(), torch.zeros(64, dtype=torch.int32), programs)


def test_the_same_kernel_without_an_error_passes():
    assert run(PASSES, numbers(), torch.zeros(64, dtype=torch.int32)).tolist() == [t ^ 32 for t in range(64)]


def test_gaps_between_elements_belong_to_nobody():
    wide = torch.zeros(128, dtype=torch.int32)
    with pytest.raises(Fault, match="between the elements"):
        run("ld.global.b32 %r6, [%rd4];", wide[::2], torch.zeros(64, dtype=torch.int32))


def test_asynchronous_copies_must_be_waited_for():
    copy = "cp.async.ca.shared.global [%r4], [%rd4], 4; cp.async.commit_group;"
    wait, read = "cp.async.wait_group 0;", "ld.shared.b32 %r6, [%r4]; st.global.b32 [%rd5], %r6;"
    source, target = numbers(), torch.zeros(64, dtype=torch.int32)
    assert torch.equal(run(copy + wait + read, source, target), source)
    with pytest.raises(Fault, match="under way"):
        run(copy + read, source, torch.zeros(64, dtype=torch.int32))


def test_an_unknown_instruction_is_refused():
    with pytest.raises(NotEmulated, match=r"tcgen05\.mma"):
        run("tcgen05.mma %r5, %r6;", numbers(), torch.zeros(64, dtype=torch.int32))


@pytest.mark.parametrize("shape", FRAGMENTS)
def test_fragments_cover_their_matrices_once(shape):
    rows, columns, depth = (int(n) for n in shape[0][1:].replace("n", " ").replace("k", " ").split())
    for fragment, size in zip(FRAGMENTS[shape], [(rows, depth), (columns, depth), (rows, columns)], strict=True):
        places = (fragment.rows * size[1] + fragment.columns).ravel()
        assert sorted(places) == list(range(size[0] * size[1]))


def test_swizzled_descriptors_keep_to_their_tile():
    """128-byte rows, 8 of them a kilobyte: each row holds its own bytes, turned by its number in 16-byte pieces."""
    descriptor = np.array([1 << 62 | (1024 >> 4) << 32 | 1 << 16 | 1024 >> 4], np.uint64)
    place = descriptor_places(descriptor, 64, 16, 2, False)[0]
    row = np.arange(64)[:, None]
    assert ((place - 1024) // 128 == row).all()
    assert ((place % 128) // 16 == (np.arange(16) * 2 // 16) ^ (row % 8)).all()
