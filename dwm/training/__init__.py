"""Training of the codec and of the world model."""

from dwm.training.config import TrainConfig
from dwm.training.run import train

__all__ = ["TrainConfig", "train"]
