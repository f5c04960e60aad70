"""Training of autoencoders, all but the loop: flags, networks, optimiser, metrics in training, and the card."""

__all__ = []  # what is public of this room, `training` offers
