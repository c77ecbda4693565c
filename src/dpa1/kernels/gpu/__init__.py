"""Triton kernels for CUDA devices; siblings of ``dpa1.kernels.reference``. Its modules import triton: import them late."""
