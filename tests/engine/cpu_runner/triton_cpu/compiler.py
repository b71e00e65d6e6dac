"""What Triton asks of a backend before it runs anything."""

# mypy: disable-error-code="misc"
from typing import Any

from triton.backends.compiler import BaseBackend


class CPUBackend(BaseBackend):
    @staticmethod
    def supports_target(target: Any) -> bool:
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        return "cpu"

    def parse_options(self, options: Any) -> None:
        return None

    def add_stages(self, stages: Any, options: Any, language: Any = None) -> None:
        return None

    def load_dialects(self, context: Any) -> None:
        return None

    def get_module_map(self) -> dict[str, Any]:
        return {}

    def get_codegen_implementation(self, options: Any) -> dict[str, Any]:
        return {}

    def pack_metadata(self, metadata: Any) -> Any:
        return metadata
