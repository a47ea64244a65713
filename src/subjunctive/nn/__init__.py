"""Plain networks: tensors in, tensors out, nothing causal inside."""

from subjunctive.nn.beside import Beside as Beside
from subjunctive.nn.conv import ConvEncoder as ConvEncoder
from subjunctive.nn.decoder import ConvDecoder as ConvDecoder
from subjunctive.nn.mlp import MLP as MLP
from subjunctive.nn.residual import Residual as Residual
from subjunctive.nn.unet import UNet as UNet
