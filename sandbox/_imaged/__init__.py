"""Containers of images: what joins the image store to a container. `origin` finds an image, `face` is what `Container` offers of it."""

from __future__ import annotations
