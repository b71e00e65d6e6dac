#!/bin/sh
# Asks the suite's questions of a running server, and writes scores, answers and plots to a folder.
set -eu
here=$(dirname "$0")
exec logit-fusion eval --suite "$here/suite.yaml" --url "${LOGIT_FUSION_URL:-http://127.0.0.1:8000}" --out "${1:-eval-results}"
