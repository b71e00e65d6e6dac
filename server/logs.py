"""What the libraries under the server may say on standard error.

They are told by environment variables, because the engine's processes are started afresh and inherit nothing else.
"""

from __future__ import annotations

import os


def quiet_libraries(log_level: str) -> None:
    """Let vLLM, transformers and torch speak at `log_level`; call before they are imported.

    At `warning` and above their remarks on this machine (no Triton, no preloaded allocator) and the progress of
    loading stay away too: nothing that a user could mend. Whatever the user's environment says already wins.
    """
    settings = {"VLLM_LOGGING_LEVEL": log_level.upper(), "VLLM_NO_USAGE_STATS": "1"}
    if log_level not in ("debug", "info"):
        settings |= {
            "VLLM_LOGGING_LEVEL": "ERROR",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONWARNINGS": "ignore",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def loading_shows_progress() -> bool:
    """Whether the engine's processes may draw progress bars while they load."""
    return os.environ.get("VLLM_LOGGING_LEVEL", "INFO") in ("DEBUG", "INFO")
