"""Plain networks: tensors in, tensors out, nothing causal inside."""

from subjunctive.nn.conv import ConvEncoder as ConvEncoder
from subjunctive.nn.mlp import MLP as MLP
from subjunctive.nn.residual import Residual as Residual
from subjunctive.nn.unet import UNet as UNet
