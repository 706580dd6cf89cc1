"""Attention blocks and mixers as `nn.Module`s: one a file, channel count first."""
