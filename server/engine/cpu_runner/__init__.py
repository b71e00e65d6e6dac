"""Model Runner V2 on CPUs: plain functions in the place of the Triton kernels that it launches.

vLLM 0.32 runs Model Runner V2 on CPUs too, but its small kernels (block tables, positions, sampling, ...) are written
in Triton, which has no CPU backend there. `register` puts one function of this folder in the place of each, by vLLM's
own `register_kernels`. Upstream is writing such functions too; once vLLM has all of them, this folder can go.
"""

from server.engine.cpu_runner.registration import register, warm_up

__all__ = ["register", "warm_up"]
