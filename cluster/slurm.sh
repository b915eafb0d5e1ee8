#!/usr/bin/env bash
# A run on the nodes of a Slurm allocation:
#   sbatch --nodes=4 cluster/slurm.sh jobs/configs/digits.yaml --output /shared/runs/digits [--set KEY=VALUE ...]
# Give the same command again, or let Slurm requeue the job, and the run goes on where it stood: --output is what counts.
# From the root of the repository, on storage that all nodes see. Exit code: the job's (2 is bad input).
#SBATCH --job-name=ka-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=1-00:00:00
#SBATCH --output=slurm-%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${KA_RAY_BIN:=$PWD/.venv/bin}" # where python, ray and ka-ray are, on every node
: "${KA_RAY_JOB:=jobs/amalgamate.py}"
: "${KA_RAY_TIMEOUT:=300}"           # seconds in which all nodes must have joined
: "${KA_RAY_STATE:=$HOME/.ka_ray}"   # the token lies here while the job runs: storage that all nodes see, yours alone
: "${KA_RAY_AUTH:=token}"            # or off: then whoever reaches the nodes can run code as you
[[ -n ${SLURM_JOB_ID:-} ]] || { echo "slurm.sh: not in a Slurm job; start it with sbatch" >&2 && exit 2; }
(($# > 0)) || { echo "slurm.sh: which config? sbatch cluster/slurm.sh CONFIG --output DIR" >&2 && exit 2; }
[[ -x $KA_RAY_BIN/ray ]] || { echo "slurm.sh: no ray in $KA_RAY_BIN; set KA_RAY_BIN" >&2 && exit 2; }
[[ $KA_RAY_AUTH =~ ^(token|off)$ ]] || { echo "slurm.sh: KA_RAY_AUTH: neither token nor off" >&2 && exit 2; }

for variable in "${!RAY_@}"; do unset "$variable"; done
export PATH="$KA_RAY_BIN:$PATH" PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0

# Jobs that share a node must not meet: a hundred ports a job, below those that the system gives away.
first=$((10000 + SLURM_JOB_ID % 220 * 100))
ports=(
    --node-manager-port=$((first + 3)) --object-manager-port=$((first + 4)) --runtime-env-agent-port=$((first + 5))
    --dashboard-agent-listen-port=$((first + 6)) --dashboard-agent-grpc-port=$((first + 7))
    --metrics-export-port=$((first + 8)) --min-worker-port=$((first + 20)) --max-worker-port=$((first + 99))
)
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # where this script runs, too
address="$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }'):$first"
here="/tmp/ka_ray_$SLURM_JOB_ID" # Ray's own files, on each node's disk

umask 077
state="$KA_RAY_STATE/$SLURM_JOB_ID"
mkdir -p "$state"
export RAY_AUTH_MODE=disabled
if [[ $KA_RAY_AUTH == token ]]; then
    od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n' >"$state/token"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
fi

steps=()
driver=""
# shellcheck disable=SC2329  # the traps call it
clean_up() {
    trap - EXIT TERM INT
    [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true
    ((${#steps[@]} == 0)) || kill -TERM "${steps[@]}" 2>/dev/null || true # srun passes it on, and Slurm ends the rest
    wait || true
    srun --overlap --ntasks="${#nodes[@]}" rm -rf "$here" 2>/dev/null || true
    rm -rf "$state"
}
trap clean_up EXIT
trap 'clean_up; exit 143' TERM INT # time is up, or the job is requeued

cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
resources=(--num-cpus="$cpus" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --temp-dir="$here" --disable-usage-stats)
echo "head $head, ${#nodes[@]} nodes, $address"
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --port="$first" --dashboard-host=127.0.0.1 --dashboard-port=$((first + 1)) \
    --ray-client-server-port=$((first + 2)) "${ports[@]}" "${resources[@]}" &
steps+=($!)
until ray health-check --address "$address" >/dev/null 2>&1; do
    ((SECONDS < KA_RAY_TIMEOUT)) || { echo "slurm.sh: the head does not answer" >&2 && exit 1; }
    kill -0 "${steps[0]}" 2>/dev/null || { echo "slurm.sh: the head ended" >&2 && exit 1; }
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --block --address="$address" "${ports[@]}" "${resources[@]}" &
    steps+=($!)
fi

export RAY_ADDRESS="$address"
python - "${#nodes[@]}" "$((KA_RAY_TIMEOUT - SECONDS))" <<'END'
import logging
import sys
import time

import ray

wanted, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
ray.init(logging_level=logging.ERROR, log_to_driver=False)
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > until:
        sys.exit(f"slurm.sh: {alive} of {wanted} nodes joined")
    time.sleep(2)
END

python "$KA_RAY_JOB" "$@" &
driver=$!
status=0
wait "$driver" || status=$?
driver=""
exit "$status"
