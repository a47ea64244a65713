"""Plain networks: tensors in, tensors out, nothing causal inside."""

from typing import TYPE_CHECKING

from subjunctive.index import lazy

if TYPE_CHECKING:
    from subjunctive.nn.beside import Beside as Beside
    from subjunctive.nn.conv import ConvEncoder as ConvEncoder
    from subjunctive.nn.decoder import ConvDecoder as ConvDecoder
    from subjunctive.nn.grid import GridDecoder as GridDecoder
    from subjunctive.nn.grid import GridEncoder as GridEncoder
    from subjunctive.nn.invertible import Affine as Affine
    from subjunctive.nn.invertible import Couplings as Couplings
    from subjunctive.nn.invertible import Leaky as Leaky
    from subjunctive.nn.invertible import Tail as Tail
    from subjunctive.nn.ladder import Ladder as Ladder
    from subjunctive.nn.mlp import MLP as MLP
    from subjunctive.nn.propagate import Expressed as Expressed
    from subjunctive.nn.propagate import Knocked as Knocked
    from subjunctive.nn.propagate import Propagate as Propagate
    from subjunctive.nn.residual import Residual as Residual
    from subjunctive.nn.timed import Timed as Timed
    from subjunctive.nn.unet import UNet as UNet

__getattr__, __dir__, __all__ = lazy(__name__)
