"""A backend named `cpu` for Triton, with which vLLM takes Triton for usable and its interpreter runs the kernels.

It compiles nothing: the tests set TRITON_INTERPRET=1.
"""
