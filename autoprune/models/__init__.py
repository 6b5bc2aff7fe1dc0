"""Built-in networks, all with width, depth and input channels as arguments."""

from autoprune.models.mlp import mlp
from autoprune.models.mobilenet import mobilenet
from autoprune.models.resnet import resnet
from autoprune.models.vgg import vgg
from autoprune.models.vit import vit

__all__ = ["mlp", "mobilenet", "resnet", "vgg", "vit"]
