"""pythae on the pictures of `vae_speed.py`, which runs this with an interpreter that has pythae.

It knows nothing of `subjunctive`; the networks stand here, in plain torch, and are those of both
sides. An epoch is one `train_step` of pythae's `BaseTrainer`, its own loop over its own loader with
its own optimiser, Adam; its progress bar and logging are off, and the copy of the best model that
its `train` keeps after each epoch is left out. It trains an epoch for every line of standard input,
so that both sides take turns, and answers with the seconds.

    PYTHON benchmarks/vae_speed_rival.py PICTURES.npz NETWORK LOSS BATCH RATE SEED
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from importlib import metadata
from typing import Any

import numpy as np
import torch
from timing import timed
from torch import Tensor, nn

LATENT = 16
NETWORKS = ("perceptrons", "convolutions")


def encoder(network: str, side: int) -> nn.Module:
    """Return a network from pictures `(B, 1, side, side)` to two heads' features, `(B, F)`."""
    if network == "perceptrons":
        return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 512), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * side * side, 128),
        nn.ReLU(),
    )


def decoder(network: str, side: int) -> nn.Module:
    """Return a network from a latent `(B, LATENT)` to logits or means, `(B, 1, side, side)`."""
    picture = nn.Unflatten(1, (1, side, side))
    if network == "perceptrons":
        return nn.Sequential(
            nn.Linear(LATENT, 512), nn.ReLU(), nn.Linear(512, side * side), picture
        )
    return nn.Sequential(
        nn.Linear(LATENT, 128),
        nn.ReLU(),
        nn.Linear(128, 2 * side * side),
        nn.Unflatten(1, (32, side // 4, side // 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )


def heads(network: str) -> int:
    """Return the width of the encoder's features."""
    return 512 if network == "perceptrons" else 128


def build(network: str, loss: str, side: int) -> Any:
    """Return pythae's VAE of these networks."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = encoder(network, side)
            self.mean = nn.Linear(heads(network), LATENT)
            self.log_variance = nn.Linear(heads(network), LATENT)

        def forward(self, x: Tensor) -> Any:
            h = self.network(x)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = decoder(network, side)

        def forward(self, z: Tensor) -> Any:
            x = self.network(z)
            return ModelOutput(reconstruction=x.sigmoid() if loss == "bce" else x)

    config = VAEConfig(input_dim=(1, side, side), latent_dim=LATENT, reconstruction_loss=loss)
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def main() -> None:
    """Train an epoch for every line of standard input; the last line of output says what on."""
    path, network, loss, batch, rate, seed = sys.argv[1:7]
    logging.disable(logging.INFO)
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    torch.set_num_threads(1)
    torch.manual_seed(int(seed))
    with np.load(path) as given:
        pictures = torch.from_numpy(given["pictures"])
    with tempfile.TemporaryDirectory() as place:
        trainer = BaseTrainer(
            build(network, loss, pictures.shape[-1]),
            BaseDataset(pictures, torch.zeros(len(pictures))),
            training_config=BaseTrainerConfig(
                output_dir=place,
                per_device_train_batch_size=int(batch),
                learning_rate=float(rate),
                seed=int(seed),
                no_cuda=True,
            ),
        )
        trainer.prepare_training()
        trainer.callback_handler.callbacks = []  # its progress bar and its log
        for epoch, _ in enumerate(sys.stdin):
            wall, cpu, mean = timed(lambda e=epoch: trainer.train_step(e), 1)
            print(json.dumps({"wall": wall, "cpu": cpu, "loss": mean}), flush=True)
    versions = {name: metadata.version(name) for name in ("pythae", "torch", "numpy")}
    print(json.dumps(versions), flush=True)


if __name__ == "__main__":
    main()
