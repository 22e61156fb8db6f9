#!/usr/bin/env bash
# Builds the enclave image and leaves mrgc-enclave.eif, pcr-values.json and build-output.json.
#
#   ./build.sh [--out DIR] [--kernel FILE] [--vm] [--sign-key PEM --sign-certificate PEM]   without Docker, the same bytes
#                                                                                           every time; --help for all
#   ./build.sh --nitro-cli [--out DIR]         the same files with AWS's kernel and init, by docker and nitro-cli
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/.venv/bin/python}
command -v "$python" >/dev/null || { echo "build.sh: no $python: run make setup first, or set PYTHON" >&2; exit 2; }

eif() { PYTHONPATH=$here "$python" -m infra.eif "$@"; }

if [ "${1:-}" != --nitro-cli ]; then
    eif build "$@"
    exit
fi

shift
out=.
if [ "${1:-}" = --out ]; then
    out=${2:?build.sh: --out takes a folder}
    shift 2
fi
[ $# = 0 ] || { echo "build.sh: --nitro-cli takes --out DIR only, not $1" >&2; exit 2; }
for tool in docker nitro-cli; do
    command -v "$tool" >/dev/null || { echo "build.sh: --nitro-cli needs $tool, which is not here" >&2; exit 2; }
done
mkdir -p "$out"
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
eif rootfs "$context/rootfs.tar"
docker build --quiet --tag mrgc-enclave:latest --file "$here/enclave/Dockerfile" "$context"
nitro-cli build-enclave --docker-uri mrgc-enclave:latest --output-file "$out/mrgc-enclave.eif" > "$out/build-output.json"
# Measured again by our own reader: what tenants are told does not rest on one tool.
eif pcrs "$out/mrgc-enclave.eif" --equal "$out/build-output.json" > "$context/pcr-values.json"
mv "$context/pcr-values.json" "$out/pcr-values.json"
cat "$out/pcr-values.json"
