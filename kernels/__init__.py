"""Functions on tensors: each op is a plain PyTorch definition (`reference.py`) and, where there is one, a Triton kernel.

This layer imports neither timm nor any other part of attnzoo.
"""
