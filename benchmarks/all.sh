#!/usr/bin/env bash
# Every benchmark of a machine without a GPU, one after another, into benchmarks/results/; then README's table.
# Wants an idle machine and about an hour; each script says at its end whether its limit was met.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export OMP_NUM_THREADS=1

for command in bench_recurrence.py bench_shards.py bench_tree.py bench_handoff.py bench_status.py bench_overlap.py bench_engines.py \
  "bench_pong.py collection" "bench_pong.py end-to-end" bench_cartpole.py bench_decoding.py; do
  echo "== $command"
  # A limit that is not met is said in the table; it does not keep the others from being measured.
  # shellcheck disable=SC2086
  "$python" benchmarks/$command --json || echo "== $command: exit code $?"
done
"$python" benchmarks/table.py
