#!/usr/bin/env bash
# Run a Ray cluster of several nodes on this machine, to try things out and for tests: a head that runs no tasks,
# N workers, and an MLflow server. Every node is a group of processes of its own. Linux only.
set -euo pipefail

usage() {
    cat <<'END'
usage: cluster/local.sh COMMAND

  up N       start a head, N workers and MLflow; return when all of them answer
  env        print the variables that a shell needs to use the cluster:  eval "$(cluster/local.sh env)"
  status     list the nodes and their resources
  add        start one more worker and print its number
  kill K     kill all processes of node K with SIGKILL, as a power failure would (node 0 is the head)
  down       end everything that was started here; logs and MLflow's data stay in the folder

Settings are read from the environment:                                                 default
  KA_RAY_CLUSTER_DIR      folder of the token, the logs and MLflow's data     ${TMPDIR:-/tmp}/ka_ray_cluster_$UID
  KA_RAY_PORT             first port; node K uses 100 ports from PORT + 100 (K + 1)     24000
  KA_RAY_AUTH             token, or off: then anyone who reaches the ports can run code token
  KA_RAY_MLFLOW           on, or off: no MLflow server                                  on
  KA_RAY_TIMEOUT          seconds that `up` and `add` wait for each node                180
Settings of the workers; `add` may use other values than `up`:
  KA_RAY_CPUS             CPUs per worker                                               2
  KA_RAY_GPUS             logical GPUs per worker; real ones are not needed             0
  KA_RAY_OBJECT_STORE_MB  size of the object store of each node, in MiB                 256
  KA_RAY_LABELS           labels per worker: a list separated by ; of which worker K    none
                          takes entry K; after the last entry the list starts again:
                          'group=teachers;group=trainers,zone=a'
END
}

fail() {
    echo "cluster/local.sh: $*" >&2
    exit 1
}

usage_error() {
    echo "cluster/local.sh: $*" >&2
    echo "usage: cluster/local.sh up N | env | status | add | kill K | down    (-h explains)" >&2
    exit 2
}

check_number() { # NAME VALUE MIN: refuse a value that is not a whole number of at least MIN
    if [[ ! $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3)); then # 10#: without it, bash reads 010 as 8
        usage_error "$1: $2 is not a whole number of at least $3"
    fi
}

# --- settings ---------------------------------------------------------------------------------------------------------

CLUSTER_SETTINGS=(KA_RAY_PORT KA_RAY_AUTH KA_RAY_MLFLOW)
WORKER_SETTINGS=(KA_RAY_CPUS KA_RAY_GPUS KA_RAY_OBJECT_STORE_MB KA_RAY_LABELS)

read_settings() { # COMMAND: take the settings of `up` for later commands; the environment may change those of workers
    local name value
    if [[ -f $folder/settings && $1 != up ]]; then
        while IFS='=' read -r name value; do
            if [[ " ${CLUSTER_SETTINGS[*]} " == *" $name "* ]]; then
                printf -v "$name" '%s' "$value"
            elif [[ " ${WORKER_SETTINGS[*]} " == *" $name "* && ! -v $name ]]; then
                printf -v "$name" '%s' "$value"
            fi
        done <"$folder/settings"
    fi
    : "${KA_RAY_PORT:=24000}" "${KA_RAY_AUTH:=token}" "${KA_RAY_MLFLOW:=on}" "${KA_RAY_TIMEOUT:=180}"
    : "${KA_RAY_CPUS:=2}" "${KA_RAY_GPUS:=0}" "${KA_RAY_OBJECT_STORE_MB:=256}" "${KA_RAY_LABELS:=}"
    check_number KA_RAY_PORT "$KA_RAY_PORT" 1024
    check_number KA_RAY_TIMEOUT "$KA_RAY_TIMEOUT" 1
    check_number KA_RAY_CPUS "$KA_RAY_CPUS" 1
    check_number KA_RAY_GPUS "$KA_RAY_GPUS" 0
    check_number KA_RAY_OBJECT_STORE_MB "$KA_RAY_OBJECT_STORE_MB" 80
    [[ $KA_RAY_AUTH =~ ^(token|off)$ ]] || usage_error "KA_RAY_AUTH: $KA_RAY_AUTH is neither token nor off"
    [[ $KA_RAY_MLFLOW =~ ^(on|off)$ ]] || usage_error "KA_RAY_MLFLOW: $KA_RAY_MLFLOW is neither on nor off"
    # The settings file has one setting per line.
    [[ $KA_RAY_LABELS != *$'\n'* ]] || usage_error "KA_RAY_LABELS: must not contain a line break"
    dashboard="http://127.0.0.1:$((KA_RAY_PORT + 1))"
    tracking="http://127.0.0.1:$((KA_RAY_PORT + 2))"
    gcs="$(node_address 0):$KA_RAY_PORT"
}

write_settings() {
    local name
    for name in "${CLUSTER_SETTINGS[@]}" "${WORKER_SETTINGS[@]}"; do
        printf '%s=%s\n' "$name" "${!name}"
    done >"$folder/settings"
}

node_address() { # K: every node has its own loopback address, because Ray tells nodes apart by their address
    echo "127.0.0.$(($1 + 2))"
}

find_folder() {
    folder="${KA_RAY_CLUSTER_DIR:-${TMPDIR:-/tmp}/ka_ray_cluster_$UID}"
    [[ -e $folder ]] || return 0
    # Others may write to /tmp, too: a folder or link that they put there must not receive our token.
    [[ -d $folder && -O $folder && ! -L $folder ]] ||
        fail "$folder is not a folder that belongs to you; set KA_RAY_CLUSTER_DIR to another one"
    folder="$(cd "$folder" && pwd -P)"
}

is_ours() { # whether `up` has made what is in the folder: it writes its settings there first
    [[ -f $folder/settings && -O $folder/settings && ! -L $folder/settings ]] &&
        grep -q '^KA_RAY_PORT=' "$folder/settings"
}

refuse_foreign_files() { # `up` and `down` delete files in the folder: those of somebody else's project must stay
    if ! is_ours && [[ -n $(ls -A "$folder") ]]; then
        fail "$folder holds files that this script did not make, and \`up\` would delete some of them; set" \
            "KA_RAY_CLUSTER_DIR to a new or empty folder"
    fi
}

make_folder() {
    mkdir -p "$(dirname "$folder")"
    mkdir -m 700 "$folder" 2>/dev/null || true # with its mode from the start, if it does not exist
    find_folder
    refuse_foreign_files
    chmod 700 "$folder"
    refuse_foreign_files # nobody else can put files there any more
    # Ray puts .../session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store_<i> below a node's folder, and
    # Linux limits the path of a socket to 107 characters.
    local longest="$folder/node250/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store_10"
    ((${#longest} <= 107)) ||
        fail "the path $folder is $((${#longest} - 107)) characters too long for Ray's sockets; set KA_RAY_CLUSTER_DIR"
}

find_programs() { # set $bin to the folder of ray and mlflow: that of the active python, else .venv of this checkout
    local here python_bin=""
    here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
    if command -v python >/dev/null; then
        python_bin="$(python -c 'import os, sys; print(os.path.dirname(sys.executable))')"
    fi
    for bin in "$python_bin" "$here/.venv/bin"; do
        if [[ -x $bin/ray && ($KA_RAY_MLFLOW == off || -x $bin/mlflow) ]]; then
            return
        fi
    done
    fail "ray or mlflow is missing next to the python on PATH and in $here/.venv/bin: run \`make setup\` first"
}

# --- processes --------------------------------------------------------------------------------------------------------

# All processes of a node have its name in their environment, even if they moved to another session (Ray starts the
# driver of a job in its own session). Some processes overwrite their environment with a title. Therefore a process
# also belongs to the node if it shares a session with a named process or descends from one. Process ids are not
# stored, because the system may give the id of an ended process to a process of somebody else.
list_processes() { # MARK: KA_RAY_LOCAL_NODE=... or KA_RAY_LOCAL_CLUSTER=...
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

signal_all() { # SIGNAL MARK: send a signal to every process with the mark; some may end in the meantime
    local pids
    mapfile -t pids < <(list_processes "$2")
    ((${#pids[@]} == 0)) || kill -s "$1" -- "${pids[@]}" 2>/dev/null || true
}

kill_all() { # MARK: kill every process with the mark until none is left; a killed process may just have forked
    for _ in {1..50}; do
        [[ -n $(list_processes "$1") ]] || return 0
        signal_all KILL "$1"
        sleep 0.1
    done
    fail "these processes do not end after SIGKILL: $(list_processes "$1" | xargs)"
}

stop_all() { # give drivers and MLflow two seconds to finish writing; Ray's own processes would take much longer
    local mark="KA_RAY_LOCAL_CLUSTER=$folder"
    signal_all TERM "$mark"
    for _ in {1..10}; do
        [[ -n $(list_processes "$mark") ]] || return 0
        sleep 0.2
    done
    kill_all "$mark"
}

start_process() { # NAME COMMAND...: start a command in its own session, with its output in logs/NAME.log
    local name=$1
    shift
    (
        # The shell may belong to another cluster or tracker: nothing of that may reach ours.
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
        # A worker process needs seconds to import torch, so idle ones are kept for the next task.
        export RAY_idle_worker_killing_time_threshold_ms=600000 RAY_num_workers_soft_limit=16
        # Tasks that ask for no GPU keep their CUDA_VISIBLE_DEVICES; without this, some Ray versions warn and empty it.
        export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
        # Every actor pool of Ray Data logs as an "error" that its actors may restart (ray-project/ray issue 53727).
        export RAY_BACKEND_LOG_LEVEL=fatal
        export RAY_enable_metrics_collection=0 # nobody reads metrics here, and Ray would serve them to anyone
        export AUTOSCALER_METRIC_PORT=$((KA_RAY_PORT + 4)) DASHBOARD_METRIC_PORT=$((KA_RAY_PORT + 5))
        export GLOO_SOCKET_IFNAME=lo # otherwise torch's workers bind to the external address of the machine
        cd "$folder"
        exec setsid "$@" </dev/null >"$folder/logs/$name.log" 2>&1
    ) &
    disown # otherwise the shell prints a message when the process is killed
}

start_node() { # K OPTION...: start node K with the options that only the head or only a worker needs
    local node=$1 first=$((KA_RAY_PORT + 100 * ($1 + 1)))
    shift
    ((node <= 250 && first + 99 <= 65535)) ||
        fail "node $node: no ports or addresses are left; set a lower KA_RAY_PORT or start fewer nodes"
    mkdir -p "$folder/node$node"
    start_process "node$node" "$bin/ray" start --block --disable-usage-stats "$@" \
        --node-name="node$node" --node-ip-address="$(node_address "$node")" --temp-dir="$folder/node$node" \
        --object-store-memory=$((KA_RAY_OBJECT_STORE_MB * 1024 * 1024)) \
        --node-manager-port="$first" --object-manager-port=$((first + 1)) \
        --dashboard-agent-listen-port=$((first + 2)) --dashboard-agent-grpc-port=$((first + 3)) \
        --runtime-env-agent-port=$((first + 4)) --metrics-export-port=$((first + 5)) \
        --min-worker-port=$((first + 10)) --max-worker-port=$((first + 99))
}

start_head() { # without CPUs and GPUs, so that Ray schedules no tasks on it
    start_node 0 --head --port="$KA_RAY_PORT" --num-cpus=0 --num-gpus=0 \
        --dashboard-host=127.0.0.1 --dashboard-port=$((KA_RAY_PORT + 1)) --ray-client-server-port=$((KA_RAY_PORT + 3))
}

start_worker() { # K: start worker K, counted from 1
    local labels=()
    IFS=';' read -r -a labels <<<"$KA_RAY_LABELS"
    local label=""
    ((${#labels[@]} == 0)) || label=${labels[$((($1 - 1) % ${#labels[@]}))]}
    start_node "$1" --address="$gcs" --num-cpus="$KA_RAY_CPUS" --num-gpus="$KA_RAY_GPUS" ${label:+"--labels=$label"}
}

start_mlflow() {
    mkdir -p "$folder/mlflow/artifacts"
    start_process mlflow "$bin/mlflow" server --host 127.0.0.1 --port $((KA_RAY_PORT + 2)) --workers 1 \
        --backend-store-uri "sqlite:///$folder/mlflow/mlflow.db" --artifacts-destination "$folder/mlflow/artifacts"
}

# --- state of the cluster ---------------------------------------------------------------------------------------------

list_nodes() { # print a line per node that Ray knows: name, state, address, resources, labels
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
    # An empty ProxyHandler: a proxy from the environment must not get the request, nor the token.
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

is_up() { # NAME: whether a node, or mlflow, answers
    if [[ $1 == mlflow ]]; then
        "$bin/python" -c 'import sys, urllib.request as u
u.build_opener(u.ProxyHandler({})).open(sys.argv[1] + "/health", timeout=5)' "$tracking" 2>/dev/null
    else
        list_nodes 2>/dev/null | grep -q "^$1 ALIVE "
    fi
}

start_named() { # NAME: start node0 (the head), node1, node2, ... or mlflow
    case $1 in
        mlflow) start_mlflow ;;
        node0) start_head ;;
        *) start_worker "${1#node}" ;;
    esac
}

wait_until_up() { # NAME: wait until it answers; if it does not, show its log and end everything
    local -i until=$((SECONDS + KA_RAY_TIMEOUT))
    until is_up "$1"; do
        if ((SECONDS >= until)); then
            give_up "$1" "does not answer after $KA_RAY_TIMEOUT s; its log is above (KA_RAY_TIMEOUT sets the time)"
        elif [[ -z $(list_processes "KA_RAY_LOCAL_NODE=$folder/$1") ]]; then
            # `ray start` gives up after 30 s, which can be too short on a busy machine: start it again.
            grep -qs "timed out during startup" "$folder/logs/$1.log" ||
                give_up "$1" "ended during its start; its log is above"
            start_named "$1"
        fi
        sleep 0.5
    done
}

give_up() { # NAME WHY: show the log of a process, end what this command has started, and fail
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

require_cluster() {
    [[ -n $(list_processes "KA_RAY_LOCAL_CLUSTER=$folder") ]] ||
        fail "no cluster runs in $folder; start one with: cluster/local.sh up 2"
}

# --- commands ---------------------------------------------------------------------------------------------------------

up() {
    local -i count=$((10#$1))
    make_folder
    [[ -z $(list_processes "KA_RAY_LOCAL_CLUSTER=$folder") ]] ||
        fail "a cluster already runs in $folder; end it with: cluster/local.sh down"
    local port
    for port in "$KA_RAY_PORT" $((KA_RAY_PORT + 1)) $((KA_RAY_PORT + 2)); do
        if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port is in use by another program; set KA_RAY_PORT to another first port"
        fi
    done
    umask 077
    write_settings
    find "$folder" -mindepth 1 -maxdepth 1 -regex '.*/node[0-9]+' -exec rm -rf {} +
    rm -rf "$folder/logs" "$folder/token"
    mkdir -p "$folder/logs"
    if [[ $KA_RAY_AUTH == token ]]; then
        od -An -N32 -v -tx1 /dev/urandom | tr -d ' \n' >"$folder/token"
    fi
    undo=all # what give_up ends
    trap 'stop_all; exit 130' INT TERM
    local names=(node0)
    local -i node
    for ((node = 1; node <= count; node++)); do
        names+=("node$node")
    done
    [[ $KA_RAY_MLFLOW == off ]] || names+=(mlflow)
    local name
    for name in "${names[@]}"; do # one after the other, because each start keeps a core busy for seconds
        start_named "$name"
        wait_until_up "$name"
    done
    trap - INT TERM
    cat <<END
A head and $count workers with $KA_RAY_CPUS CPUs each are up; dashboard: $dashboard
To run something on them, and to end them:
  eval "\$(cluster/local.sh env)"
  ray job submit --working-dir . -- python jobs/amalgamate.py jobs/configs/digits.yaml --output \$PWD/runs/local
  cluster/local.sh down
END
}

add() {
    require_cluster
    local -i node=1
    while [[ -e $folder/node$node ]]; do # the number of a killed node is not used again
        node+=1
    done
    undo=node$node
    start_named "$undo"
    wait_until_up "$undo"
    echo "$node"
}

kill_node() {
    local name=node$((10#$1))
    [[ -n $(list_processes "KA_RAY_LOCAL_NODE=$folder/$name") ]] ||
        fail "$name does not run; \`cluster/local.sh status\` lists the nodes"
    kill_all "KA_RAY_LOCAL_NODE=$folder/$name"
}

print_env() {
    require_cluster
    printf 'export RAY_ADDRESS=%q\n' "$dashboard"
    echo 'unset RAY_AUTH_TOKEN' # it would take precedence over the token file
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
    require_cluster
    echo "folder $folder"
    echo "dashboard $dashboard (for jobs)"
    echo "ray $gcs (for ray status, ray.init)"
    [[ $KA_RAY_MLFLOW == off ]] || echo "mlflow $tracking"
    list_nodes
}

down() {
    stop_all
    ! is_ours || rm -f "$folder/token"
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
        *) usage_error "${command:-no command given}: the command must be up, env, status, add, kill or down" ;;
    esac
    (($# == wanted)) || usage_error "$command takes $((wanted - 1)) argument(s), but $(($# - 1)) were given"
    [[ $command != up ]] || check_number "up N" "$2" 1
    [[ $command != kill ]] || check_number "kill K" "$2" 0
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
