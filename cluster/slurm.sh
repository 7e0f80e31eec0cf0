#!/usr/bin/env bash
# One Ray job on the nodes of a Slurm allocation: Ray comes up on all of them, runs the command, and goes with it.
#
#   sbatch cluster/slurm.sh python recipes/pretrain_large.py --preset large --data s3://bucket/videos \
#       --out /shared/runs/large
#
# Submit it in the repository's root folder, on a file system that all nodes share, with flamscale's environment active;
# flags of sbatch (--nodes 4 --time 8:00:00) stand before the file's name and outdo those below. Five minutes before the
# time limit the job is told to leave, for which it saves a checkpoint, and queued again. scancel ends it for good.
#SBATCH --job-name=flamscale
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flamscale-%j.log
set -euo pipefail

port=${HEAD_PORT:-6379}
dashboard_port=${DASHBOARD_PORT:-8265}
metrics_port=${METRICS_PORT:-8080} # on every node, for Prometheus
start_timeout_s=300

fail() { # message, exit code
    echo "error: $1" >&2
    exit "$2"
}
if (($# == 0)); then
    fail "Expected the job's command after cluster/slurm.sh, found none; pass python recipes/... and its flags." 2
fi
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# Who reaches Ray's ports may run code as this user: a token keeps the cluster's other users out, a single node's Ray
# listens on loopback alone, and so does the dashboard with the job server, always.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_JOB_STOP_WAIT_TIME_S=200 # for the checkpoint, from telling a job to leave to killing it
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_gcs_server_port_wait_time_s=$start_timeout_s
if ((${#nodes[@]} == 1)); then
    address=127.0.0.1
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 # Ray's switch for a head that listens on loopback alone
else # the first node's address as the last one sees it: on its own node a name may stand for loopback
    read -r address _ < <(srun --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" getent ahostsv4 "${nodes[0]}") ||
        fail "Expected ${nodes[-1]} to know the address of ${nodes[0]}, found none; check the name service." 1
fi
export no_proxy="127.0.0.1,$address${no_proxy:+,$no_proxy}"
export NO_PROXY=$no_proxy
ulimit -S -n "$(ulimit -H -n)"

steps=()
stop_ray() {
    kill "${steps[@]}" 2>/dev/null || true # srun hands the signal on to its nodes
    wait
    steps=()
}
trap stop_ray EXIT
trap 'exit 143' TERM

on_each=(--ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK")
flags=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --metrics-export-port="$metrics_port")
srun --nodes=1 --nodelist="${nodes[0]}" "${on_each[@]}" \
    ray start "${flags[@]}" --head --node-ip-address="$address" --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" &
steps+=("$!")
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" "${on_each[@]}" \
        ray start "${flags[@]}" --address="$address:$port" &
    steps+=("$!")
fi

python -m flamscale_cluster.submit --dashboard-port "$dashboard_port" --num-nodes "${#nodes[@]}" \
    --start-timeout-s "$start_timeout_s" -- "$@" &
submit=$!
steps+=("$submit")
limit_is_near=no
trap 'limit_is_near=yes; kill "$submit" 2>/dev/null || true' USR1
code=0
wait "$submit" || code=$?
if [[ $limit_is_near == yes ]]; then # the signal ended the wait, not the job
    code=0
    wait "$submit" || code=$?
fi
stop_ray
if [[ $limit_is_near == yes && $code != 0 ]]; then
    echo "The time limit is near: job $SLURM_JOB_ID is queued again, to go on from its newest checkpoint."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
