#!/bin/sh
# Runs a Python test in .venv (scripts/test makes it). 77, "skipped", where its packages are missing.
if ! .venv/bin/python -c 'import grpc, grpc_tools' 2>/dev/null; then
  echo "skipped: grpcio and grpcio-tools are not in .venv (scripts/test installs them)"
  exit 77
fi
exec .venv/bin/python "$@"
