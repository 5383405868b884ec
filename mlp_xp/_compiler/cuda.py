"""CUDA C++ source of the kernels of a step, from their plan (`mlp_xp._compiler.kernels`).

Each segment becomes a device function, and each stage a kernel that calls those of its segments: a segment
takes as many blocks of threads as its domain needs. Sizes are arguments, so that the source is the same for
all sizes of a network, and is compiled once.

A reduction ends with the last block of those that share it: each writes its part to memory, and the block
that finds itself the last one, by a counter, combines the parts in their order. So results do not depend on
the order in which blocks run.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from mlp_xp._compiler.graph import NotRecordableError
from mlp_xp._compiler.kernels import KernelPlan, plan_kernels
from mlp_xp._compiler.languages import SCALAR_EXPRESSIONS
from mlp_xp._compiler.products import move_products_into_segments
from mlp_xp._compiler.segments import THREADS, UNROLLED, Call, CudaSegmentWriter
from mlp_xp._compiler.storage import check_results
from mlp_xp._compiler.trace import TracedFunction

MAX_PARAMETER_BYTES = 4096
"""Size of all parameters of a kernel; more are possible on newer devices and drivers only."""

PRELUDE = """
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
typedef unsigned int Index;

template <typename T> __device__ inline T larger(T a, T b) { return a != a || a > b ? a : b; }
template <typename T> __device__ inline T smaller(T a, T b) { return a != a || a < b ? a : b; }
template <typename T> __device__ inline T sign_of(T a) { return a != a ? a : T(a > 0) - T(a < 0); }
template <typename T> __device__ inline T log_of_sum(T a, T b) {
  if (a == b) return a + T(0.693147180559945309417232121458176568);
  const T distance = a - b;
  return distance > 0 ? a + log1p(exp(-distance)) : distance <= 0 ? b + log1p(exp(distance)) : distance;
}
struct Sum { template <typename T> __device__ T operator()(T a, T b) const { return a + b; } };
struct Larger { template <typename T> __device__ T operator()(T a, T b) const { return larger(a, b); } };
struct Smaller { template <typename T> __device__ T operator()(T a, T b) const { return smaller(a, b); } };

// Combine the values of the lanes of a row; all of them get the result.
template <typename Operation, typename T> __device__ inline T of_row(T x) {
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    x = Operation()(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// Combine the values of all threads whose numbers differ by multiples of width, a power of two.
template <typename Operation, typename T> __device__ inline T of_block(void* memory, T x, Index width) {
  T* shared = static_cast<T*>(memory);
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  for (Index size = THREADS / 2; size >= width; size /= 2) {
    if (threadIdx.x < size)
      shared[threadIdx.x] = Operation()(shared[threadIdx.x], shared[threadIdx.x + size]);
    __syncthreads();
  }
  return shared[threadIdx.x % width];
}

// Count the blocks that have come here; whether this is the last one.
__device__ inline bool is_last_of(Index n_blocks, unsigned int* counter) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == n_blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}
"""
"""The functions that those of segments call."""


@dataclass
class Kernel:
    """A kernel, and what to launch it with."""

    name: str
    calls: list[Call]


@dataclass
class KernelProgram:
    """A step as kernels.

    Attributes
    ----------
    plan : KernelPlan
    source : str
    kernels : list of list of Kernel
        Those of each stage of the plan.
    threads : int
        Number of threads in a block.
    """

    plan: KernelPlan
    source: str
    kernels: list[list[Kernel]]
    threads: int


def write_kernels(
    traced: TracedFunction, threads: int = THREADS, host_functions: Container[Any] = SCALAR_EXPRESSIONS
) -> KernelProgram:
    """Return the program of a traced step as kernels, with products of a library between them.

    Parameters
    ----------
    traced : TracedFunction
    threads : int, default=256
        Number of threads in a block, a power of two. With 1, the source can be compiled for a CPU.
    host_functions : container of ufunc
        Functions of numbers that the host can compute.

    Raises
    ------
    NotRecordableError
        If there is something that has no expression in C++.
    """
    check_results(traced, host_functions)
    plan = plan_kernels(traced, move_products_into_segments)
    functions: dict[str, str] = {}
    names: dict[str, str] = {}
    kernels = []
    for stage in plan.stages:
        calls = [CudaSegmentWriter(plan, segment, functions).write(threads) for segment in stage.segments]
        kernels.append(
            [
                Kernel(names.setdefault(_kernel_text(some), f"kernel{len(names)}"), some)
                for some in _split(calls)
            ]
        )
    prelude = f"#define UNROLLED {UNROLLED}{PRELUDE}"
    texts = [
        f'extern "C" __global__ void __launch_bounds__(THREADS) {name}{text}' for text, name in names.items()
    ]
    segments = [f"__device__ inline void {name}{text}" for text, name in functions.items()]
    return KernelProgram(plan, "\n".join([prelude, *segments, *texts]), kernels, threads)


def _split(calls: list[Call]) -> list[list[Call]]:
    """Split calls into those of kernels whose parameters are not too many."""
    split: list[list[Call]] = []
    n_bytes = MAX_PARAMETER_BYTES
    for call in calls:
        more = 4 * (1 + len(call.sizes)) + 8 * (1 + len(call.arguments))
        if more > MAX_PARAMETER_BYTES:
            raise NotRecordableError("values of more arrays than a kernel can have")
        if n_bytes + more > MAX_PARAMETER_BYTES:
            split.append([])
            n_bytes = 0
        split[-1].append(call)
        n_bytes += more
    return split


def _kernel_text(calls: list[Call]) -> str:
    """Return a kernel's parameters and body: equal kernels of several stages are one."""
    parameters, lines = [], []
    for number, call in enumerate(calls):
        sizes = [f"size{number}_{index}" for index in range(len(call.sizes))]
        names = [f"argument{number}_{index}" for index in range(len(call.arguments))]
        parameters += [f"Index blocks{number}", *(f"Index {name}" for name in sizes)]
        parameters += [f"{ctype} {name}" for ctype, name in zip(call.types, names)]
        call_text = f"{call.function}({', '.join(['block', 'shared', *sizes, *names])})"
        lines += [f"  if (block < blocks{number}) return {call_text};", f"  block -= blocks{number};"]
    return "\n".join(
        [
            f"({', '.join(parameters)}) {{",
            "  __shared__ double shared[THREADS];",
            "  Index block = blockIdx.x;",
            *lines[:-1],
            "}",
        ]
    )
