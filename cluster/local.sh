#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, to try things and to test them: a head that takes no work, N workers,
# and an MLflow server, every node a group of processes of its own. Linux only.
set -euo pipefail

usage() {
    cat <<'END'
usage: cluster/local.sh COMMAND

  up N       a head without work, N workers, MLflow; returns when all of them answer
  env        what a shell needs to use it:  eval "$(cluster/local.sh env)"
  status     the nodes, and what they have
  add        one worker more; prints its number
  kill K     end node K as a power cut would: SIGKILL to all of its processes (0 is the head)
  down       end everything that was started here; logs and MLflow's data stay in the folder

Settings, from the environment:
  KA_RAY_CLUSTER_DIR      the folder: token, logs, MLflow's data      ${TMPDIR:-/tmp}/ka_ray_cluster_$UID
  KA_RAY_PORT             first port; node K has 100 ports, from PORT + 100 (K + 1)     24000
  KA_RAY_AUTH             token, or off: then whoever reaches the ports can run code    token
  KA_RAY_MLFLOW           on or off                                                     on
  KA_RAY_TIMEOUT          seconds that `up` and `add` wait for the nodes                180
Of each worker; `add` may be given others than `up`:
  KA_RAY_CPUS             CPUs                                                          2
  KA_RAY_GPUS             logical GPUs, which need not exist                            0
  KA_RAY_OBJECT_STORE_MB  object store of each node                                     256
  KA_RAY_LABELS           labels: worker K takes the K-th of a list with ; in between,  none
                          and the list starts again at its end:  'group=teachers;group=trainers,zone=a'
END
}

fail() {
    echo "cluster/local.sh: $*" >&2
    exit 1
}

misuse() {
    echo "cluster/local.sh: $*" >&2
    echo "usage: cluster/local.sh up N | env | status | add | kill K | down    (-h explains)" >&2
    exit 2
}

number() { # NAME VALUE LEAST: refuse what is not a whole number of at least LEAST
    if [[ ! $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3)); then
        misuse "$1: $2 is no whole number of at least $3"
    fi
}

# --- settings ---------------------------------------------------------------------------------------------------------

OF_THE_CLUSTER=(KA_RAY_PORT KA_RAY_AUTH KA_RAY_MLFLOW)
OF_A_WORKER=(KA_RAY_CPUS KA_RAY_GPUS KA_RAY_OBJECT_STORE_MB KA_RAY_LABELS)

read_settings() { # what `up` was given holds for later commands; `add` may change what is a worker's
    local name value
    if [[ -f $folder/settings && $1 != up ]]; then
        while IFS='=' read -r name value; do
            if [[ " ${OF_THE_CLUSTER[*]} " == *" $name "* ]]; then
                printf -v "$name" '%s' "$value"
            elif [[ " ${OF_A_WORKER[*]} " == *" $name "* && ! -v $name ]]; then
                printf -v "$name" '%s' "$value"
            fi
        done <"$folder/settings"
    fi
    : "${KA_RAY_PORT:=24000}" "${KA_RAY_AUTH:=token}" "${KA_RAY_MLFLOW:=on}" "${KA_RAY_TIMEOUT:=180}"
    : "${KA_RAY_CPUS:=2}" "${KA_RAY_GPUS:=0}" "${KA_RAY_OBJECT_STORE_MB:=256}" "${KA_RAY_LABELS:=}"
    number KA_RAY_PORT "$KA_RAY_PORT" 1024
    number KA_RAY_TIMEOUT "$KA_RAY_TIMEOUT" 1
    number KA_RAY_CPUS "$KA_RAY_CPUS" 1
    number KA_RAY_GPUS "$KA_RAY_GPUS" 0
    number KA_RAY_OBJECT_STORE_MB "$KA_RAY_OBJECT_STORE_MB" 80
    [[ $KA_RAY_AUTH =~ ^(token|off)$ ]] || misuse "KA_RAY_AUTH: $KA_RAY_AUTH is neither token nor off"
    [[ $KA_RAY_MLFLOW =~ ^(on|off)$ ]] || misuse "KA_RAY_MLFLOW: $KA_RAY_MLFLOW is neither on nor off"
    [[ $KA_RAY_LABELS != *$'\n'* ]] || misuse "KA_RAY_LABELS: one line"
    dashboard="http://127.0.0.1:$((KA_RAY_PORT + 1))"
    tracking="http://127.0.0.1:$((KA_RAY_PORT + 2))"
    gcs="$(address_of 0):$KA_RAY_PORT"
}

write_settings() {
    local name
    for name in "${OF_THE_CLUSTER[@]}" "${OF_A_WORKER[@]}"; do
        printf '%s=%s\n' "$name" "${!name}"
    done >"$folder/settings"
}

address_of() { # every node has a loopback address of its own, so that Ray tells them apart
    echo "127.0.0.$(($1 + 2))"
}

find_folder() {
    folder="${KA_RAY_CLUSTER_DIR:-${TMPDIR:-/tmp}/ka_ray_cluster_$UID}"
    [[ -e $folder ]] || return 0
    [[ -d $folder && -O $folder && ! -L $folder ]] || fail "$folder is no folder of yours; set KA_RAY_CLUSTER_DIR"
    folder="$(cd "$folder" && pwd -P)"
}

make_folder() {
    mkdir -p "$folder"
    find_folder
    chmod 700 "$folder"
    # Ray puts .../session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store_<i> below a node's folder.
    local longest="$folder/node250/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store_10"
    ((${#longest} <= 107)) || fail "$folder: too long for Ray's sockets by $((${#longest} - 107)) characters"
}

find_programs() {
    local here beside=""
    here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
    if command -v python >/dev/null; then
        beside="$(python -c 'import os, sys; print(os.path.dirname(sys.executable))')"
    fi
    for bin in "$beside" "$here/.venv/bin"; do
        if [[ -x $bin/ray && ($KA_RAY_MLFLOW == off || -x $bin/mlflow) ]]; then
            return
        fi
    done
    fail "no ray and mlflow beside python on the PATH, nor in $here/.venv/bin: run \`make setup\` first"
}

# --- processes --------------------------------------------------------------------------------------------------------

# A node's processes carry its name in their environment, whatever session they moved to (Ray starts a job's driver in
# one of its own). Some overwrite their environment with a title, so all that shares a session with one that carries
# the name, or descends from one, is the node's, too. No process id is kept, so none can have changed hands.
processes_of() { # KA_RAY_LOCAL_NODE=... or KA_RAY_LOCAL_CLUSTER=...
    local named
    named="$({ grep -slzxF -- "$1" /proc/[0-9]*/environ || true; } | cut -d/ -f3)"
    [[ -n $named ]] || return 0
    ps -e -o pid=,ppid=,sid=,stat= | awk -v named="${named//$'\n'/ }" '
        BEGIN { split(named, pids, " "); for (i in pids) ours[pids[i]] }
        $4 !~ /^Z/ { parent[$1] = $2; session[$1] = $3 }
        END {
            for (pid in parent) if (pid in ours) sessions[session[pid]]
            do {
                more = 0
                for (pid in parent)
                    if (!(pid in ours) && (session[pid] in sessions || parent[pid] in ours)) { ours[pid]; more = 1 }
            } while (more)
            for (pid in ours) if (pid in parent) print pid
        }'
}

signal_all() { # SIGNAL MARK: to every process that bears the mark; some may end meanwhile
    local pids
    mapfile -t pids < <(processes_of "$2")
    ((${#pids[@]} == 0)) || kill -s "$1" -- "${pids[@]}" 2>/dev/null || true
}

kill_all() { # MARK: until none is left
    for _ in {1..50}; do
        [[ -n $(processes_of "$1") ]] || return 0
        signal_all KILL "$1"
        sleep 0.1
    done
    fail "processes that do not end: $(processes_of "$1" | xargs)"
}

stop_all() { # drivers and MLflow may finish writing; Ray's own processes would take their time
    local mark="KA_RAY_LOCAL_CLUSTER=$folder"
    signal_all TERM "$mark"
    for _ in {1..10}; do
        [[ -n $(processes_of "$mark") ]] || return 0
        sleep 0.2
    done
    kill_all "$mark"
}

start() { # NAME COMMAND...: in a session of its own, its output in logs/NAME.log
    local name=$1
    shift
    (
        for variable in "${!RAY_@}" "${!MLFLOW_@}"; do
            unset "$variable"
        done
        export PATH="$bin:$PATH" PYTHONUNBUFFERED=1
        export KA_RAY_LOCAL_CLUSTER=$folder KA_RAY_LOCAL_NODE=$folder/$name
        export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
        export RAY_AUTH_MODE=disabled
        if [[ $KA_RAY_AUTH == token ]]; then
            export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
        fi
        if [[ $KA_RAY_MLFLOW == on && $name != mlflow ]]; then
            export MLFLOW_TRACKING_URI=$tracking
        fi
        # A worker process imports torch, which takes seconds: idle ones are kept.
        export RAY_idle_worker_killing_time_threshold_ms=600000 RAY_num_workers_soft_limit=16
        export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
        # Every actor pool of Ray Data logs an "error" that its actors may restart (ray-project/ray issue 53727).
        export RAY_BACKEND_LOG_LEVEL=fatal
        export RAY_enable_metrics_collection=0 # nobody scrapes them here, and Ray would serve them to anyone
        export AUTOSCALER_METRIC_PORT=$((KA_RAY_PORT + 4)) DASHBOARD_METRIC_PORT=$((KA_RAY_PORT + 5))
        export GLOO_SOCKET_IFNAME=lo # torch's workers would bind to the machine's outer address
        cd "$folder"
        exec setsid "$@" </dev/null >"$folder/logs/$name.log" 2>&1
    ) &
    disown # no word from the shell when it is killed
}

start_node() { # K, and what is the head's or a worker's alone
    local node=$1 first=$((KA_RAY_PORT + 100 * ($1 + 1)))
    shift
    ((node <= 250 && first + 99 <= 65535)) || fail "no ports or addresses left for node $node"
    mkdir -p "$folder/node$node"
    start "node$node" "$bin/ray" start --block --disable-usage-stats "$@" \
        --node-name="node$node" --node-ip-address="$(address_of "$node")" --temp-dir="$folder/node$node" \
        --object-store-memory=$((KA_RAY_OBJECT_STORE_MB * 1024 * 1024)) \
        --node-manager-port="$first" --object-manager-port=$((first + 1)) \
        --dashboard-agent-listen-port=$((first + 2)) --dashboard-agent-grpc-port=$((first + 3)) \
        --runtime-env-agent-port=$((first + 4)) --metrics-export-port=$((first + 5)) \
        --min-worker-port=$((first + 10)) --max-worker-port=$((first + 99))
}

start_head() {
    start_node 0 --head --port="$KA_RAY_PORT" --num-cpus=0 --num-gpus=0 \
        --dashboard-host=127.0.0.1 --dashboard-port=$((KA_RAY_PORT + 1)) --ray-client-server-port=$((KA_RAY_PORT + 3))
}

start_worker() { # K, from 1
    local labels=()
    IFS=';' read -r -a labels <<<"$KA_RAY_LABELS"
    local label=""
    ((${#labels[@]} == 0)) || label=${labels[$((($1 - 1) % ${#labels[@]}))]}
    start_node "$1" --address="$gcs" --num-cpus="$KA_RAY_CPUS" --num-gpus="$KA_RAY_GPUS" ${label:+"--labels=$label"}
}

start_mlflow() {
    mkdir -p "$folder/mlflow/artifacts"
    start mlflow "$bin/mlflow" server --host 127.0.0.1 --port $((KA_RAY_PORT + 2)) --workers 1 \
        --backend-store-uri "sqlite:///$folder/mlflow/mlflow.db" --artifacts-destination "$folder/mlflow/artifacts"
}

# --- what answers -----------------------------------------------------------------------------------------------------

nodes() { # a line a node that Ray knows: name, state, address, resources, labels
    local token=/dev/null
    [[ $KA_RAY_AUTH == off ]] || token=$folder/token
    "$bin/python" - "$dashboard" "$token" <<'END'
import json
import sys
import urllib.request

address, token = sys.argv[1], open(sys.argv[2]).read().strip()
headers = {"Authorization": f"Bearer {token}"} if token else {}
request = urllib.request.Request(f"{address}/api/v0/nodes?limit=1000&detail=true", headers=headers)
try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        found = json.load(answer)["data"]["result"]["result"]
except (OSError, KeyError, TypeError, ValueError) as error:
    sys.exit(f"{address} does not answer: {error}")
for node in sorted(found, key=lambda node: node["start_time_ms"] or 0):
    has = node["resources_total"]
    what = [f"{unit}={has[unit]:g}" for unit in ("CPU", "GPU") if unit in has]
    what += [f"{k}={v}" for k, v in node["labels"].items() if not k.startswith("ray.io/")]
    print(node["node_name"], node["state"], node["node_ip"], *what)
END
}

is_up() { # NAME: a node, or mlflow
    if [[ $1 == mlflow ]]; then
        "$bin/python" -c 'import sys, urllib.request as u
u.build_opener(u.ProxyHandler({})).open(sys.argv[1] + "/health", timeout=5)' "$tracking" 2>/dev/null
    else
        nodes 2>/dev/null | grep -q "^$1 ALIVE "
    fi
}

start_named() { # node0, node3, mlflow
    case $1 in
        mlflow) start_mlflow ;;
        node0) start_head ;;
        *) start_worker "${1#node}" ;;
    esac
}

wait_for() { # NAME: until it answers; show its log if it does not
    local -i until=$((SECONDS + KA_RAY_TIMEOUT))
    until is_up "$1"; do
        if ((SECONDS >= until)); then
            give_up "$1" "does not answer after $KA_RAY_TIMEOUT s (KA_RAY_TIMEOUT)"
        elif [[ -z $(processes_of "KA_RAY_LOCAL_NODE=$folder/$1") ]]; then
            # `ray start` gives a node 30 s, which a busy machine may not have for it.
            grep -qs "timed out during startup" "$folder/logs/$1.log" || give_up "$1" ended
            start_named "$1"
        fi
        sleep 0.5
    done
}

give_up() { # NAME WHY: undo what this command began
    {
        echo "--- $folder/logs/$1.log"
        tail -n 20 "$folder/logs/$1.log"
        echo "---"
    } >&2
    if [[ $undo == all ]]; then
        stop_all
    else
        kill_all "KA_RAY_LOCAL_NODE=$folder/$undo"
    fi
    fail "$1 $2"
}

must_be_up() {
    [[ -n $(processes_of "KA_RAY_LOCAL_CLUSTER=$folder") ]] || fail "nothing runs here ($folder): cluster/local.sh up 2"
}

# --- commands ---------------------------------------------------------------------------------------------------------

up() {
    local -i count=$((10#$1))
    make_folder
    [[ -z $(processes_of "KA_RAY_LOCAL_CLUSTER=$folder") ]] || fail "already up ($folder): cluster/local.sh down"
    local port
    for port in "$KA_RAY_PORT" $((KA_RAY_PORT + 1)) $((KA_RAY_PORT + 2)); do
        if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port is taken: set KA_RAY_PORT"
        fi
    done
    umask 077
    rm -rf "$folder"/node* "$folder/logs" "$folder/token"
    mkdir -p "$folder/logs"
    write_settings
    if [[ $KA_RAY_AUTH == token ]]; then
        od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n' >"$folder/token"
    fi
    undo=all
    trap 'stop_all; exit 130' INT TERM
    local names=(node0)
    local -i node
    for ((node = 1; node <= count; node++)); do
        names+=("node$node")
    done
    [[ $KA_RAY_MLFLOW == off ]] || names+=(mlflow)
    local name
    for name in "${names[@]}"; do # one after the other: each start takes a core for seconds
        start_named "$name"
        wait_for "$name"
    done
    trap - INT TERM
    cat <<END
A head and $count workers of $KA_RAY_CPUS CPUs are up; dashboard: $dashboard
Next:
  eval "\$(cluster/local.sh env)"
  ray job submit --working-dir . -- python jobs/amalgamate.py jobs/configs/digits.yaml --output \$PWD/runs/local
  cluster/local.sh down
END
}

add() {
    must_be_up
    local -i node=1
    while [[ -e $folder/node$node ]]; do
        node+=1
    done
    undo=node$node
    start_named "$undo"
    wait_for "$undo"
    echo "$node"
}

kill_node() {
    local name=node$((10#$1))
    [[ -n $(processes_of "KA_RAY_LOCAL_NODE=$folder/$name") ]] || fail "no process of $name runs"
    kill_all "KA_RAY_LOCAL_NODE=$folder/$name"
}

print_env() {
    must_be_up
    printf 'export RAY_ADDRESS=%q\n' "$dashboard"
    echo 'unset RAY_AUTH_TOKEN'
    if [[ $KA_RAY_AUTH == token ]]; then
        printf 'export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q\n' "$folder/token"
    else
        printf 'unset RAY_AUTH_TOKEN_PATH\nexport RAY_AUTH_MODE=disabled\n'
    fi
    if [[ $KA_RAY_MLFLOW == on ]]; then
        printf 'export MLFLOW_TRACKING_URI=%q\n' "$tracking"
    fi
}

status() {
    must_be_up
    echo "folder $folder"
    echo "dashboard $dashboard (for jobs)"
    echo "ray $gcs (for ray status, ray.init)"
    [[ $KA_RAY_MLFLOW == off ]] || echo "mlflow $tracking"
    nodes
}

down() {
    stop_all
    rm -f "$folder/token"
}

main() {
    local command=${1:-} wanted=1
    case $command in
        up | kill) wanted=2 ;;
        add | down | env | status) ;;
        -h | --help | help)
            usage
            exit
            ;;
        *) misuse "${command:-no command}: not one of up, env, status, add, kill, down" ;;
    esac
    (($# == wanted)) || misuse "$command takes $((wanted - 1)) arguments, not $(($# - 1))"
    [[ $command != up ]] || number "up N" "$2" 1
    [[ $command != kill ]] || number "kill K" "$2" 0
    find_folder
    read_settings "$command"
    case $command in
        down) down ;;
        env) print_env ;;
        kill) kill_node "$2" ;;
        *)
            find_programs
            "$@"
            ;;
    esac
}

main "$@"
