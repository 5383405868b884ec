"""Stand-ins for `torch.cuda` and NVIDIA's cuda-bindings: PyTorch's tensors on the CPU train as on CUDA.

A captured graph calls the captured function again when it is replayed. Kernels are compiled for the host, as
`cuda_stand_in` does it. It is an error to compile or to load kernels during a capture.
"""

import ctypes
import gc
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from importlib import import_module
from types import ModuleType, SimpleNamespace

import cuda_stand_in
import pytest

KERNELS = "mlp_xp._engines.torch_kernels"


class Stream:
    cuda_stream = 1234

    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.calls.append((self.name, "waits for", other.name))

    def synchronize(self):
        self.cuda.calls.append(f"the host waits for {self.name}")


class Event:
    def record(self, stream):
        stream.cuda.calls.append(f"an event of {stream.name}")

    def synchronize(self):
        pass


class Graph:
    def replay(self):
        self.function()
        self.cuda.calls.append("replay")


class Cuda:
    """The part of `torch.cuda` that the library uses; it records the calls."""

    def __init__(self):
        self.calls = []
        self.caller = Stream(self, "caller")
        self.capturing = False
        self.bindings = Bindings(self)

    def new_stream(self, device):
        self.calls.append("stream")
        return Stream(self, "own")

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        assert not gc.isenabled()
        self.calls.append("capture")
        self.capturing = True
        try:
            yield
        except ValueError:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        finally:
            self.capturing = False


class Status(IntEnum):
    SUCCESS, COMPILATION, INVALID, NOT_FOUND = 0, 6, 1, 500


class Bindings:
    """The functions of `cuda.bindings.nvrtc` and `cuda.bindings.driver` that the library uses.

    Attributes
    ----------
    counts : Counter
        Of the calls that succeeded, by their names.
    refused : dict of str to int
        By the name of a function: from which call on it answers with an error.
    """

    def __init__(self, cuda):
        self.cuda = cuda
        self.counts = Counter()
        self.refused = {}
        self.architectures = [80, 90]
        self.options = []

    def modules(self):
        functions = {
            "nvrtc": {
                "nvrtcGetSupportedArchs": self.supported_architectures,
                "nvrtcCreateProgram": self.create_program,
                "nvrtcCompileProgram": self.compile_program,
                "nvrtcGetCUBINSize": self.code_size,
                "nvrtcGetCUBIN": self.code,
                "nvrtcGetPTXSize": self.code_size,
                "nvrtcGetPTX": self.code,
                "nvrtcDestroyProgram": lambda program: (Status.SUCCESS,),
            },
            "driver": {
                "cuLibraryLoadData": self.load,
                "cuLibraryGetKernel": self.kernel,
                "cuKernelGetFunction": lambda kernel: (Status.SUCCESS, kernel),
                "cuLaunchKernel": self.launch,
            },
        }
        package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
        package.bindings = bindings
        for module, of_module in functions.items():
            checked = {name: self.checked(name, function) for name, function in of_module.items()}
            setattr(bindings, module, SimpleNamespace(**checked))
        return {"cuda": package, "cuda.bindings": bindings}

    @property
    def options_for_host(self):
        return tuple(option for option in self.options if not option.startswith("--gpu"))

    def checked(self, name, function):
        def call(*arguments):
            assert not self.cuda.capturing or name == "cuLaunchKernel"
            if self.counts[name] >= self.refused.get(name, sys.maxsize):
                return (Status.INVALID,)
            answer = function(*arguments)
            self.counts[name] += answer[0] == Status.SUCCESS
            return answer

        call.__name__ = name
        return call

    def supported_architectures(self):
        return Status.SUCCESS, self.architectures

    def create_program(self, source, name, n_headers, headers, names):
        assert (n_headers, headers, names) == (0, None, None)
        return Status.SUCCESS, SimpleNamespace(source=source)

    def compile_program(self, program, n_options, options):
        assert n_options == len(options)
        self.options = [option.decode() for option in options]
        try:
            cuda_stand_in.compiled_for_host(program.source.decode(), self.options_for_host)
        except cuda_stand_in.CompileException:
            return (Status.COMPILATION,)
        return (Status.SUCCESS,)

    # Compiled code is its source here.

    def code_size(self, program):
        return Status.SUCCESS, len(program.source)

    def code(self, program, out):
        out[:] = program.source
        return (Status.SUCCESS,)

    def load(self, code, *options):
        assert options == ([], [], 0, [], [], 0)
        return Status.SUCCESS, code.decode()

    def kernel(self, library, name):
        parameters = cuda_stand_in.parameters_of_kernels(library).get(name.decode())
        if parameters is None:
            return Status.NOT_FOUND, None
        types = [
            ctypes.c_uint32 if one.split()[0] == "Index" else ctypes.c_void_p for one in parameters.split(",")
        ]
        function = getattr(
            cuda_stand_in.compiled_for_host(library, self.options_for_host), f"launch_{name.decode()}"
        )
        return Status.SUCCESS, (function, types)

    def launch(self, kernel, *rest):
        *sizes, shared, stream, addresses, extra = rest
        assert sizes == [sizes[0], 1, 1, 1, 1, 1]
        assert (shared, stream, extra) == (0, Stream.cuda_stream, 0)
        function, types = kernel
        pointers = (ctypes.c_void_p * len(types)).from_address(addresses)
        values = [ctype.from_address(pointer) for ctype, pointer in zip(types, pointers, strict=True)]
        assert function(ctypes.c_uint32(sizes[0]), *values)
        return (Status.SUCCESS,)


@contextmanager
def installed():
    """Context in which PyTorch's tensors on the CPU train as on CUDA; yields its `Cuda`."""
    torch, graphs = import_module("torch"), import_module("mlp_xp._engines.torch_graphs")
    cuda = Cuda()

    def capture(self, function):
        replay = capture_of_the_library(self, function)
        replay.__self__.function, replay.__self__.cuda = function, cuda
        return replay

    capture_of_the_library = graphs.TorchGraphs.capture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs.TorchGraphs, "capture", capture)
        patch.setattr(graphs._THREAD_LOCAL, "streams", {}, raising=False)
        for name, value in {
            "CUDAGraph": Graph,
            "Event": Event,
            "get_device_properties": lambda device: SimpleNamespace(uuid="a stand-in"),
            "Stream": cuda.new_stream,
            "current_stream": lambda device=None: cuda.caller,
            "stream": lambda stream: nullcontext(),
            "graph": cuda.graph,
            "graph_pool_handle": lambda: (0, len(cuda.calls)),
            "get_device_capability": lambda device: (9, 0),
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        for name, module in cuda.bindings.modules().items():
            patch.setitem(sys.modules, name, module)
        patch.setitem(sys.modules, KERNELS, None)
        del sys.modules[KERNELS]  # to be imported again, and forgotten in the end
        # Kernels are compiled for the host, where a block has one thread.
        patch.setattr(import_module(KERNELS).TorchKernels, "max_threads", 1)
        yield cuda
