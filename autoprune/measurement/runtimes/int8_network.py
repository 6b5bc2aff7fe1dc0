"""A network in 8 bits that can be called like the one that it was made of."""

import importlib
import math
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.runtimes.onnx_programs import CPU, feed, require_extra, session_options
from autoprune.tasks.protocol import Inputs, device_of, forward, map_inputs, move, tensors_of


class Int8Network(nn.Module):
    """A program of ONNX in 8 bits as a module, so that a task judges it like any other network.

    `program` is the program's file with the batch free: weights, and the ranges of activations
    that calibration found. `origin` is the fp32 network that it was made of, which says how
    outputs are nested and can be trained; without one they come as a tuple of tensors. It computes
    on the CPU, on torch's number of threads at the first call, for inputs on any device. It may be
    copied and pickled.
    """

    def __init__(self, program: bytes, origin: nn.Module | None = None) -> None:
        super().__init__()
        require_extra()
        self.program = program
        self.origin = origin
        self._session: Any = None
        self._nesting: tuple[list[tuple[bool, Any]], TreeSpec] | None = None

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights and ranges in the program."""
        onnx = importlib.import_module("onnx")
        found: int = sum(
            math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            for tensor in onnx.load_model_from_string(self.program).graph.initializer
        )
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the program makes of inputs, given as the origin takes them.

        Raises AutopruneError where it is to be trained.
        """
        if self.training and torch.is_grad_enabled():
            raise AutopruneError(
                "a network in int8 cannot be trained; train its `origin`, which is in fp32"
            )
        inputs: Inputs = kwargs if kwargs else args[0] if len(args) == 1 else args
        place = tensors_of(inputs)[0].device
        inputs = map_inputs(lambda tensor: tensor.detach().cpu(), inputs)
        if self._session is None:
            self._session = self._loaded()
        arrays = self._session.run(None, feed(self._session, inputs))
        return self._nested([torch.from_numpy(array).to(place) for array in arrays], inputs)

    def _loaded(self) -> Any:
        import onnxruntime

        options = session_options(torch.get_num_threads())
        return onnxruntime.InferenceSession(self.program, options, providers=[CPU])

    def _nested(self, outputs: list[torch.Tensor], inputs: Inputs) -> Any:
        """The outputs as the origin nests its own; what is no tensor there stays what it is."""
        if self.origin is None:
            return tuple(outputs)
        if self._nesting is None:
            one: Inputs = map_inputs(lambda tensor: tensor[:1], inputs)
            with torch.no_grad():
                own = forward(self.origin, move(one, device_of(self.origin)))
            leaves, spec = tree_flatten(own)
            known = [(isinstance(leaf, torch.Tensor), leaf) for leaf in leaves]
            self._nesting = [(t, None if t else leaf) for t, leaf in known], spec
        (leaves, spec), left = self._nesting, iter(outputs)
        return tree_unflatten([next(left) if t else leaf for t, leaf in leaves], spec)

    def __getstate__(self) -> dict[str, Any]:
        # a session travels to no other process, and belongs to the threads that it was made for
        return {**self.__dict__, "_session": None, "_nesting": None}
