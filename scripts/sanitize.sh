#!/bin/bash
# Builds the native core with sanitizers and runs its tests and a few whole requests under them.
#
#   scripts/sanitize.sh address   address and undefined-behaviour sanitizers (the default)
#   scripts/sanitize.sh thread    data races between the threads of a step
#
# Everything is made in build/sanitize-*; what is installed stays as it is. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-address}
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
out=${SANITIZE_DIR:-build/sanitize-$kind}
mkdir -p "$out"

case $kind in
address) options=(-DVGLM_SANITIZE=ON) library=libasan.so ;;
thread) options=(-DCMAKE_CXX_FLAGS=-fsanitize=thread\ -g -DCMAKE_MODULE_LINKER_FLAGS=-fsanitize=thread) library=libtsan.so ;;
*) echo "usage: $0 [address|thread]" >&2; exit 2 ;;
esac
cmake -S native -B "$out/cmake" -DPython_EXECUTABLE="$python" "${options[@]}" >"$out/cmake.log" || { tail -20 "$out/cmake.log"; exit 1; }
cmake --build "$out/cmake" -j "$(nproc)" >"$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }

# A copy of the package with the sanitized extension, so that it is the one that is imported.
rm -rf "$out/tree"
mkdir "$out/tree"
cp -r vglm tests pyproject.toml "$out/tree/"
rm -f "$out"/tree/vglm/_native*.so
cp "$out"/cmake/_native*.so "$out/tree/vglm/"
cd "$out/tree"

# Python itself is not sanitized: its own allocator would hide our errors, and what it never frees is no leak of ours.
export PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1
preload=$(gcc -print-file-name=$library)
[ "$kind" = address ] && preload="$preload $(gcc -print-file-name=libstdc++.so)"
run() { LD_PRELOAD=$preload "$python" -m pytest -q -p no:cacheprovider -x "$@"; }

if [ "$kind" = address ]; then
  run tests/native tests/decode/test_sampler.py
  run tests/integration/test_invariance.py -k "tiny or instruction_set"
  run tests/integration/test_robustness.py -k "not interrupts and not control_c and not wrong_models and not ten_thousand and not address_space"
  run tests/integration/test_models.py
else
  run tests/native/test_forward.py -k "threads or neighbours"
  run tests/native/test_plan.py
  run tests/integration/test_invariance.py -k "tiny and int8-int8"
  run tests/integration/test_robustness.py -k "threads or stream"
fi
echo "$kind sanitizer: clean"
