"""The CPU engine: numba SIMD kernels run by a team of threads."""
