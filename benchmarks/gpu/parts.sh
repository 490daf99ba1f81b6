#!/usr/bin/env bash
# Measures one group of parts on a GPU, each with a result file of its own, so that what was measured stays if the
# machine goes: benchmarks/gpu/parts.sh GROUP OUT [SOURCE]
#
#   loader   decode policies, what the DALI loader's time goes to, its yardstick, its settings (6 minutes)
#   tests    pytest -m gpu (4 minutes)
#   step     rooflines, optimisers, compiled networks, profiles (6 minutes)
#   whole    runs with their scores (SOURCE: a folder of real pets), end to end (4 minutes)
set -euo pipefail
group=${1:?usage: parts.sh GROUP OUT [SOURCE]}
out=${2:?usage: parts.sh GROUP OUT [SOURCE]}
source=${3:-synthetic}
python=${PYTHON:-python3}
mkdir -p "$out"
case $group in
  loader) parts="upsampling feeding ordered tuning" ;;
  step) parts="ceilings optimisers compiled profile" ;;
  whole) parts="learning whole" ;;
  tests)
    "$python" -m pytest -q -m gpu -p no:cacheprovider --junitxml "$out/gpu-tests.xml"
    exit
    ;;
  *)
    echo "unknown group '$group': loader, tests, step or whole" >&2
    exit 2
    ;;
esac
for part in $parts; do
  # What fails or takes too long costs the others nothing.
  "$python" -m benchmarks.gpu_suite --only "$part" --source "$source" --out "$out" ${QUICK:+--quick} || true
done
