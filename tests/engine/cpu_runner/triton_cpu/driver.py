"""What Triton and vLLM ask of a device."""

# mypy: disable-error-code="misc"
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CPUDriver(DriverBase):
    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> Any:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "void*"

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> int:
        return 0
