#!/usr/bin/env bash
# Prints a Python of version 3.12 or newer: from PATH, from pyenv, or one that uv knows.
set -euo pipefail
pyenv=$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")
for python in python3.12 python3.13 python3.14 "$pyenv"/versions/3.1[2-9]*/bin/python; do
    # pyenv's shims exist for versions that are not switched on, and fail.
    if "$python" -c "" 2>/dev/null; then
        command -v "$python"
        exit
    fi
done
uv=$(command -v uv || echo .venv/bin/uv)
"$uv" python find ">=3.12"
