#!/usr/bin/env bash
# One call on a bare machine with a card, and no network: builds, tests, checks memory accesses,
# measures what decides most first, and writes rows and a page to $OUT. It ends within SECONDS. A
# second call with --resume FOLDER takes up what the first one left there.
#
#   OUT=FOLDER bash examples/benchmark/gpu_once.sh [SECONDS] [options of gpu.py]
#   OUT=FOLDER bash examples/benchmark/gpu_once.sh 120 --rehearse    (without a card)
#
# Needs torch for CUDA, Triton, PyG, nanobind, cmake, a C++ compiler, pytest and hypothesis.
set -euo pipefail
out=$(realpath -m "${OUT:?the folder for results}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
limit=480
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  limit=$1
  shift
fi
python=${PYTHON:-python3}
mkdir -p "$out"

# The package runs where it is, with its native module beside the kernels' sources. Nothing is
# installed or downloaded; a module that is there and that this Python can load is taken. One that is
# built here has no kernels for wide vectors of the processor: they take most of the time, and no
# figure here is of them.
if [[ -L hag_plugin/kernels || ! -e hag_plugin/kernels ]]; then # a call that was killed leaves it
  ln -sfn ../kernels hag_plugin/kernels
  trap 'rm -f hag_plugin/kernels' EXIT
fi
if ! "$python" -c "import hag_plugin.kernels._cpu" 2> /dev/null; then
  build=$(mktemp -d)
  program=$("$python" -c "import sys; print(sys.executable)")
  if ! { cmake -S . -B "$build" -DPython_EXECUTABLE="$program" -DHAG_ISAS=1 &&
    cmake --build "$build" -j "$(nproc)"; } > "$out/build.log" 2>&1; then
    tail -n 30 "$out/build.log"
    exit 1
  fi
  cp "$build"/_cpu*.so kernels/
fi
echo "ready after $SECONDS s"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
"$python" examples/benchmark/gpu.py --tests --out "$out" --deadline $((limit - SECONDS)) "$@"
