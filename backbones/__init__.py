"""Backbones registered with timm: one family a file."""
