"""The reference forward pass is part of the product (`vglm bench accuracy`); tests find it here too."""

from vglm.model.reference import Reference

__all__ = ["Reference"]
