#!/usr/bin/env bash
# Start Ray on the nodes of a Slurm job and run a script of jobs/ on it:
#   sbatch --nodes=4 cluster/slurm.sh jobs/configs/digits.yaml --output /shared/runs/digits [--set KEY=VALUE ...]
# Submit it from the root of the repository, which must be on storage that all nodes see.
# If the run is interrupted, submit the same command again, or let Slurm requeue the job: a run with the same --output
# resumes. The exit code is that of the script (2 means bad input).
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

: "${KA_RAY_BIN:=$PWD/.venv/bin}"     # folder of python, ray and ka-ray, the same on every node
: "${KA_RAY_JOB:=jobs/amalgamate.py}" # the script to run
: "${KA_RAY_TIMEOUT:=300}"            # seconds until all nodes must have joined
: "${KA_RAY_STATE:=$HOME/.ka_ray}"    # folder of the token during the job: on storage that all nodes see, and private
: "${KA_RAY_AUTH:=token}"             # token, or off: then anyone who reaches the nodes can run code as you

fail() { # CODE MESSAGE
    echo "slurm.sh: $2" >&2
    exit "$1"
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail 2 "this is not a Slurm job; submit the script with sbatch"
(($# > 0)) || fail 2 "no config was given; usage: sbatch cluster/slurm.sh CONFIG --output DIR"
[[ -x $KA_RAY_BIN/ray ]] || fail 2 "KA_RAY_BIN: there is no ray in $KA_RAY_BIN; set it to the folder of python and ray"
[[ $KA_RAY_AUTH =~ ^(token|off)$ ]] || fail 2 "KA_RAY_AUTH: $KA_RAY_AUTH is neither token nor off"

# Settings of another cluster may be in the environment of the shell that submitted the job.
for variable in "${!RAY_@}"; do unset "$variable"; done
export PATH="$KA_RAY_BIN:$PATH" PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0

# Jobs on the same node need different ports: each takes a hundred, below the range of ephemeral ports.
first=$((10000 + SLURM_JOB_ID % 220 * 100))
ports=(
    --node-manager-port=$((first + 3)) --object-manager-port=$((first + 4)) --runtime-env-agent-port=$((first + 5))
    --dashboard-agent-listen-port=$((first + 6)) --dashboard-agent-grpc-port=$((first + 7))
    --metrics-export-port=$((first + 8)) --min-worker-port=$((first + 20)) --max-worker-port=$((first + 99))
)
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # Slurm runs this script on the first node, too
address="$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }'):$first"
ray_dir="/tmp/ka_ray_$SLURM_JOB_ID" # Ray's logs, sockets and spilled objects, on the disk of each node

umask 077
state="$KA_RAY_STATE/$SLURM_JOB_ID"
mkdir -p "$KA_RAY_STATE"
# Everyone knows the next job ids: a folder or link that somebody else made there must not receive our token.
mkdir -m 700 "$state" 2>/dev/null || [[ -d $state && -O $state && ! -L $state ]] || # ours if Slurm requeued the job
    fail 2 "KA_RAY_STATE: $state is not a folder that belongs to you; set KA_RAY_STATE to a private folder"
chmod 700 "$state"
rm -f "$state/token"
export RAY_AUTH_MODE=disabled
if [[ $KA_RAY_AUTH == token ]]; then
    od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n' >"$state/token"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
fi

steps=()  # process ids of the srun steps that run Ray
driver="" # process id of the script
# shellcheck disable=SC2329  # the function is called by the traps
clean_up() {
    trap - EXIT TERM INT
    [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true
    ((${#steps[@]} == 0)) || kill -TERM "${steps[@]}" 2>/dev/null || true # srun forwards the signal to Ray
    wait || true
    srun --overlap --ntasks="${#nodes[@]}" rm -rf "$ray_dir" 2>/dev/null || true
    rm -rf "$state"
}
trap clean_up EXIT
trap 'clean_up; exit 143' TERM INT # Slurm sends TERM when the time is up and when it requeues the job

cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
resources=(--num-cpus="$cpus" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --temp-dir="$ray_dir" --disable-usage-stats)
echo "head $head, ${#nodes[@]} nodes, $address"
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --port="$first" --dashboard-host=127.0.0.1 --dashboard-port=$((first + 1)) \
    --ray-client-server-port=$((first + 2)) "${ports[@]}" "${resources[@]}" &
steps+=($!)
until ray health-check --address "$address" >/dev/null 2>&1; do
    ((SECONDS < KA_RAY_TIMEOUT)) || fail 1 "the head on $head does not answer after $KA_RAY_TIMEOUT s (KA_RAY_TIMEOUT)"
    kill -0 "${steps[0]}" 2>/dev/null || fail 1 "the head on $head ended during its start; Ray's messages are above"
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --block --address="$address" "${ports[@]}" "${resources[@]}" &
    steps+=($!)
fi

# Without all nodes, the script could refuse a plan that fits: wait for them.
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
        sys.exit(f"slurm.sh: only {alive} of {wanted} nodes joined in time (KA_RAY_TIMEOUT)")
    time.sleep(2)
END

# In the background, because bash runs a trap only after a foreground command has ended.
python "$KA_RAY_JOB" "$@" &
driver=$!
status=0
wait "$driver" || status=$?
driver=""
exit "$status"
