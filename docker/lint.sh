#!/usr/bin/env bash
# Check both Dockerfiles, the compose file and the scripts. Installs its tools into an environment of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${TMPDIR:-/tmp}/accuquant-docker-lint
if ! cmp -s docker/requirements-lint.txt "$venv/installed"; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r docker/requirements-lint.txt
  cp docker/requirements-lint.txt "$venv/installed"
fi

"$venv/bin/hadolint" docker/*.Dockerfile
"$venv/bin/yamllint" --strict --config-data \
  '{extends: default, rules: {line-length: {max: 120}, document-start: disable}}' docker/compose.yaml
"$venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec docker/compose.yaml
"$venv/bin/shellcheck" docker/*.sh
echo "docker/: nothing to complain about"
