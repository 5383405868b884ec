"""What ufuncs and dtypes are in C++, and the functions that kernels call."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlp_xp._compiler.elements import FUNCTIONS, Language, calls
from mlp_xp._compiler.graph import OPERATORS
from mlp_xp._compiler.kernels import KERNEL_DTYPES

DTYPES = dict(zip(KERNEL_DTYPES, ("float", "double", "bool")))

OPERATIONS: dict[Any, str] = {np.add: "Sum", np.maximum: "Larger", np.minimum: "Smaller"}
"""The C++ types of the operations of ufuncs that reduce."""

EXPRESSIONS: dict[Any, str] = {
    **OPERATORS,
    **calls(FUNCTIONS),
    np.arctan: "atan({})",
    np.reciprocal: "1 / {}",
    np.absolute: "fabs({})",
    np.sign: "sign_of({})",
    np.power: "pow({}, {})",
    np.logaddexp: "log_of_sum({}, {})",
    np.maximum: "larger({}, {})",
    np.minimum: "smaller({}, {})",
    np.logical_and: "{} && {}",
    np.logical_or: "{} || {}",
    np.logical_not: "!{}",
    np.where: "{} ? {} : {}",
}

CXX = Language(
    dtypes=DTYPES,
    expressions=EXPRESSIONS,
    reductions={
        function: (f"{OPERATIONS[function]}()({{}}, {{}})", start)
        for function, start in ((np.add, "0"), (np.maximum, "-INFINITY"), (np.minimum, "INFINITY"))
    },
    truth_values=("false", "true"),
    nan="NAN",
    infinity="INFINITY",
    definition="const {type} {name} = {text};",
    assignment="{name} = {text};",
    number="*{name}",
)

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
