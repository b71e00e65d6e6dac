"""What the server and the libraries under it say on standard error, and how it looks.

The libraries are told by environment variables, because the engine's processes are started afresh and inherit nothing
else. Nothing here logs a prompt, an answer or a key.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# vLLM reads its logging configuration from a file; this one gives all its processes `JsonFormatter`.
VLLM_JSON_CONFIG = Path(__file__).with_name("vllm_json_logs.json")


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


def configure_logs(log_level: str, log_format: str) -> None:
    """Send this process' log records of `log_level` and above to standard error, as `text` or `json`."""
    if log_format == "json":
        # Whether it is read is settled when vLLM is imported, which is later.
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(VLLM_JSON_CONFIG))
    quiet_libraries(log_level)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)


def notice(message: str, **extras: object) -> None:
    """Log a line that is there at every level: what whoever reads a log should know of the start.

    `extras` follow the message as `name=value`, or are keys of the line's JSON object.
    """
    _NOTICES.setLevel(logging.INFO)
    _NOTICES.info(message, extra=extras)


_NOTICES = logging.getLogger("logit_fusion")


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}


class _TextFormatter(logging.Formatter):
    """`12:00:00 INFO POST /v1/completions 200 request_id=... client=...`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        # vLLM marks every record of a process with the process' name; here all are the server's.
        extras = {name: value for name, value in _extras(record).items() if name != "vllm_process_name"}
        listed = "".join(f" {name}={value}" for name, value in extras.items())
        return super().formatMessage(record) + listed


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the record carries besides."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)
