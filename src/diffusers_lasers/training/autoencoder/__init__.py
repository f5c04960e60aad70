"""What a training of an autoencoder has beside its loop: flags, networks and what steps them, figures, and a card."""

__all__ = []  # what is public of this room, `training` offers
