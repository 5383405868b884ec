"""A compiler for training steps: to NumPy calls, to compiled loops, and to kernels for CUDA.

NumPy runs each array call as it comes. In small networks the overhead of the calls takes most of the time, in
large ones the matrix products and the memory traffic of the elementwise operations. On a GPU it is likewise,
with launches for calls. So a step is recorded once, and written anew.

`trace` runs it on tracers that have a shape and a dtype but no elements and that record each operation in a
`graph`. Equal operations are recorded once (common subexpression elimination, in `Graph.add`). The result is
a `TracedFunction`, and a *writer* is a function of it that returns a program:

- `pipeline.write_calls`: a `Program` of NumPy calls, which overwrite memory and allocate nothing
- `loop_programs.write_loops`: a `LoopProgram`, which is a `Program` that calls compiled loops too;
  `loop_programs.write_epochs`: an `EpochProgram`, all steps of many epochs as one compiled function
- `cuda.write_kernels`: a `KernelProgram`, the source of kernels, and what they are launched with

They rewrite the graph, and raise a `NotRecordableError` for what they cannot write: it runs uncompiled.
`mlp_xp._engines.recordable.compile_step` traces a training step, calls a writer and keeps the program; `rows`
compiles predictions as NumPy calls.

The writer of NumPy calls is made for few calls, each as long as possible:

1. Passes rewrite the graph: `accumulate` fuses large updates into products, `passes` fuse biases into
   products and the updates of several small arrays into one. `accumulate` is first, because it looks for the
   products and updates that `passes` rewrite. No pass removes dead code: it drops out, because each pass and
   the schedule start from what is `reachable` from the updates and results.
2. `schedule` orders the values so that updates overwrite parameters in place.
3. `memory` plans where they lie: each in a buffer for its live range (`liveness`), except those that are used
   inside a loop over blocks alone (`regions`: fused elementwise operations).
4. `codegen` writes one NumPy call for each value (`source`), `fused_loops` the loops over blocks.

The resulting `program` is bound to memory once and called for each step.

The others compute all that they can for an element, while it is in a register. They share these stages:

1. `kernels` divides the graph into stages of segments, and the products of a library between them. For CUDA,
   `products` has rewritten those products before that segments compute.
2. `storage` plans the memory of arrays between stages.
3. `elements` writes what a segment computes for one element, in one of the `languages`. Around that
   `segments` writes functions of kernels, and `loops` those that Numba compiles.
4. `cuda` writes the kernels of stages, which `mlp_xp._engines.fused_steps` launches. `loop_programs` writes
   the calls of loops and of NumPy (`source`), or those of loops alone; `mlp_xp._engines.numba_functions`
   compiles the loops.

Examples
--------
A step of linear regression; the weight and the bias are one group, which is one flat array in memory:

>>> import numpy as np
>>> from mlp_xp._compiler import compile_function
>>> from mlp_xp._compiler.trace import trace_function
>>> def step(state, inputs, scalars):
...     (weight, bias), (X, y), (rate,) = state, inputs, scalars
...     error = np.matmul(X, weight) + bias - y
...     d_weight, d_bias = np.matmul(X.T, error), np.sum(error, axis=0)
...     return [weight - rate * d_weight, bias - rate * d_bias], [np.sum(error * error)]
>>> weight, bias, X, y = np.zeros((3, 2)), np.zeros(2), np.ones((100, 3)), np.ones((100, 2))
>>> arguments = step, [[weight, bias]], [X, y], 1
>>> print(trace_function(*arguments).graph)
%0: float64 (3, 2) = state [0]
%1: float64 (2,) = state [1]
%2: float64 (100, 3) = input [0]
%3: float64 (100, 2) = input [1]
%4: number () = scalar_input [0]
%5: float64 (100, 2) = matmul %2 %0
%6: float64 (100, 2) = map add %5 %1
%7: float64 (100, 2) = map subtract %6 %3
%8: float64 (3, 100) = transpose %2
%9: float64 (3, 2) = matmul %8 %7
%10: float64 (2,) = reduce add %7 [(0, False)]
%11: float64 (3, 2) = map multiply %4 %9
%12: float64 (3, 2) = map subtract %0 %11
%13: float64 (2,) = map multiply %4 %10
%14: float64 (2,) = map subtract %1 %13
%15: float64 (100, 2) = map multiply %7 %7
%16: float64 () = reduce add %15 [(None, False)]
>>> program = compile_function(*arguments)
>>> print(program.source)
def make(v0, v0_T, v6, ..., add_reduce, multiply):
    def step(input0, input1, number0):
        input0_T = input0.T
        zero_dim0[...] = number0
        matmul(input0, v0, v6)
        add(v6, v1, v7)
        subtract(v7, input1, v8)
        add_reduce(v8, 0, None, v9, False)
        matmul(input0_T, v8, v11)
        multiply(zero_dim0, v12, v13)
        subtract(v2, v13, v14)
        multiply(v8, v8, v15)
        s16 = add_reduce(v15, None)
        return (s16, )
    return step

One call each of `multiply` and `subtract` computes both updates: ``v12`` holds the two gradients, ``v2`` is
the whole group, and ``v14`` the same memory. Beside it the program needs three buffers of so many bytes:

>>> program.pool_nbytes
[64, 1600, 64]
>>> run = program.bind([np.zeros(8)], [np.empty(nbytes, np.uint8) for nbytes in program.pool_nbytes])
>>> (loss,) = run(X, y, 0.001)
>>> float(loss)
200.0
"""

from mlp_xp._compiler.graph import NotRecordableError
from mlp_xp._compiler.pipeline import compile_function, write_calls
from mlp_xp._compiler.program import Program

__all__ = ["NotRecordableError", "Program", "compile_function", "write_calls"]
