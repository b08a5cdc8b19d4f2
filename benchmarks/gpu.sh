#!/usr/bin/env bash
# Builds hpcrl with CUDA on this machine, tests the kernels on its GPU, runs compute-sanitizer and the benchmark, and
# ends with one table. `make gpu` calls it. Everything is built under build/gpu; an installed hpcrl stays as it is.
#
#   PYTHON=python3 benchmarks/gpu.sh     needs nvcc, a C++20 compiler and, for PYTHON, scikit-build-core, pybind11,
#                                        pytest, torch; with cupy the tests take its arrays too
#   ARCHITECTURES=90                     instead of the GPU's own, which nvcc asks the driver for
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
NVCC=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
BUILD=$PWD/build/gpu
SITE=$BUILD/site
SECONDS_A_STEP=150 # the whole takes about four minutes; a step that hangs must not take ten
mkdir -p "$BUILD"
rm -f "$BUILD"/*.log
rows=()
failed=0

# step NAME COMMAND...: runs it, keeps its output in build/gpu/NAME.log, notes how it went. Exit status 77: it could not
# run here.
step() {
  local name=$1 start=$SECONDS status
  shift
  echo "== $name"
  timeout "$SECONDS_A_STEP" bash -c '"$@"' step "$@" >"$BUILD/$name.log" 2>&1
  status=$?
  case $status in
    0) rows+=("$name|ok|$((SECONDS - start))") ;;
    77) rows+=("$name|NOT RUN|$((SECONDS - start))") failed=1 ;;
    *) rows+=("$name|FAILED ($status)|$((SECONDS - start))") failed=1 ;;
  esac
  if [ $status -ne 0 ]; then tail -n 30 "$BUILD/$name.log"; fi
  return $status
}

build_module() {
  rm -rf "$SITE"
  CUDACXX=$NVCC "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --target "$SITE" \
    -C cmake.define.HPCRL_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES="${ARCHITECTURES:-native}" \
    -C build-dir="$BUILD/module" . || return
  # An editable install in the same environment would be found before PYTHONPATH.
  echo 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]' \
    >"$SITE/sitecustomize.py"
}

build_program() {
  "$NVCC" -std=c++20 -O2 -lineinfo -arch=${ARCHITECTURES:+sm_}${ARCHITECTURES:-native} -DHPCRL_WITH_CUDA \
    -Xcompiler -ffp-contract=off -I . \
    tests/kernels/test_cuda.cu kernels/recurrence.cu kernels/random.cu kernels/random.cpp -o "$BUILD/test_cuda"
}

# With -P the checkout is not on the path: the module just built is the one imported.
built_module_is_used() {
  "$PYTHON" -P -c "import hpcrl._kernels as k; print(k.__file__); assert k.WITH_CUDA and k.__file__.startswith('$SITE')"
}

device_answers() {
  "$PYTHON" -c "import sys, torch; print(torch.version.cuda); sys.exit(0 if torch.cuda.is_available() else 77)"
}

python_tests() { # importlib: pytest then leaves the path alone, on which the checkout would come first
  PYTHONPATH=$SITE:tests:tests/ops "$PYTHON" -P -m pytest --import-mode=importlib -c /dev/null --rootdir . -p no:cacheprovider \
    -W ignore::pytest.PytestUnknownMarkWarning -ra -s \
    tests/ops/test_recurrence_cuda.py
}

sanitize() {
  command -v compute-sanitizer || return 77
  compute-sanitizer --tool "$1" --error-exitcode 99 "$BUILD/test_cuda"
}

export PYTHONPATH=$SITE PYTHON NVCC BUILD SITE
export -f build_module build_program built_module_is_used device_answers python_tests sanitize
step build-module build_module && step import built_module_is_used && step device device_answers && {
  step python-tests python_tests
  step benchmark "$PYTHON" benchmarks/bench_recurrence_cuda.py --json
}
step build-program build_program && {
  step kernel-tests "$BUILD/test_cuda"
  step memcheck sanitize memcheck
  step racecheck sanitize racecheck
}

echo
if [ -f "$BUILD/benchmark.log" ]; then cat "$BUILD/benchmark.log"; fi
if [ -f "$BUILD/python-tests.log" ]; then grep -E "us a call|passed|failed|skipped" "$BUILD/python-tests.log"; fi
echo
printf '%-16s %-14s %8s\n' step result seconds
for row in "${rows[@]}"; do
  IFS='|' read -r name result seconds <<<"$row"
  printf '%-16s %-14s %8s\n' "$name" "$result" "$seconds"
done
exit $failed
