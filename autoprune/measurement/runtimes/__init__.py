"""What runs a network when its speed is measured: the runtime it will be deployed on."""

from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.onnx import OnnxRuntime
from autoprune.measurement.runtimes.openvino import OpenVinoRuntime
from autoprune.measurement.runtimes.protocol import Inference, Reloads, Runtime, SelfTimed
from autoprune.measurement.runtimes.pytorch import TorchRuntime

__all__ = [
    "Inference",
    "Int8Network",
    "OnnxRuntime",
    "OpenVinoRuntime",
    "Reloads",
    "Runtime",
    "SelfTimed",
    "TorchRuntime",
]
