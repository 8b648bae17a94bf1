#!/bin/bash
# One allocation of superv: an agent on every node. Options for sbatch are in its argv, keys are
# not here. This script outlives its srun, and starts agents again where their step was lost.
set -u
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/opt/slurm/bin
export LC_ALL=C.UTF-8 TZ=UTC0
export SUPERV_NODE_FOLDER=/tmp/superv-1000-00112233445566778899
mkdir -m 700 "$SUPERV_NODE_FOLDER" 2>/dev/null
# 73: somebody else has made it first. They can't know its name but by a leak.
if [[ ! -d $SUPERV_NODE_FOLDER || -L $SUPERV_NODE_FOLDER || ! -O $SUPERV_NODE_FOLDER ]]; then exit 73; fi
(umask 077 && : >>"$SUPERV_NODE_FOLDER/allocation.log")
exec >>"$SUPERV_NODE_FOLDER/allocation.log" 2>&1
job=$SLURM_JOB_ID
# shellcheck disable=SC1003,SC2016 # meant for the shells on the nodes
agent=(sh -c '# Keeps one agent alive on this node: sh -c THIS superv-agent COMMAND ARGUMENT...
# While this shell lives, so does the step, and with it the ranks that a dead agent left behind.
# Other users of this node must not make the allocation'"'"'s private folder first: it is the first thing
# that is done here. The agent looks whose it is.
if [ -n "${SUPERV_NODE_FOLDER:-}" ]; then mkdir -m 700 "$SUPERV_NODE_FOLDER" 2>/dev/null; fi
say() { printf "%s %s: %s\n" "$(TZ=UTC0 date +%FT%TZ)" "${SLURMD_NODENAME:-?}" "$*"; }
leaving="" agent="" pause=1
# shellcheck disable=SC2317 # called by the trap
leave() {
  leaving=1
  trap "" TERM INT HUP # once is enough: a second signal must not cut the last wait short
  if [ -n "$agent" ]; then kill -TERM "$agent" 2>/dev/null; fi
}
trap leave TERM INT HUP
while [ -z "$leaving" ]; do
  began=$(date +%s)
  "$@" &
  agent=$!
  if [ -n "$leaving" ]; then kill -TERM "$agent" 2>/dev/null; fi
  wait "$agent"
  code=$?
  if [ -n "$leaving" ]; then
    wait "$agent" # the first wait was cut short by the signal
    break
  fi
  case $code in
    0) exit 0 ;; # told to leave
    75) say "another agent is running here"; exit 75 ;;
  esac
  if [ $(($(date +%s) - began)) -ge 60 ]; then pause=1; fi
  say "the agent ended with $code; starting it again in $pause s"
  sleep "$pause" &
  agent=$! # so that a signal ends the pause too
  wait "$agent"
  pause=$((pause * 2))
  if [ "$pause" -gt 30 ]; then pause=30; fi
done
exit 0
' superv-agent /opt/superv/bin/superv agent --run moe-100b)
step=(srun --job-name=superv-agent --overlap --no-kill --kill-on-bad-exit=0 --wait=0 --ntasks-per-node=1 --cpu-bind=none --mem=0 --mpi=none --propagate=NONE --export=ALL --input=none --label)

say() { printf '%(%FT%TZ)T allocation %s: %s\n' -1 "$job" "$*"; }

leaving=
# shellcheck disable=SC2317 # called by the trap
leave() {
  leaving=1
  trap '' TERM
  say 'SIGTERM: telling the agents'
  # Not through srun: on SIGTERM it kills its tasks at once.
  timeout --kill-after=1 10 scancel --quiet --signal=TERM "$job" ||
    say "scancel ended with $?; where the whole job ends, Slurm tells the agents itself"
}
trap leave TERM

say "starting $SLURM_JOB_NUM_NODES agents"
"${step[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" "${agent[@]}" &
srun=$!
wait "$srun"
code=$?
if [[ -n $leaving ]]; then
  wait
  exit 0
fi
if ((code == 0)); then
  say 'all agents left as they were told'
  exit 0
fi
say "the agent step's srun ended with $code; looking after the agents node by node"

# Prints the nodes of the allocation by slurmctld's word at this moment: SLURM_JOB_NODELIST goes
# stale when a dead node is taken out. Steps are not asked for: one that ended while a node of it
# was dead is listed as running forever. Whether an agent lives on a node, only the node knows.
look() {
  local nodes
  nodes=$(timeout --kill-after=1 30 squeue --noheader --jobs="$job" --format=%N) || return
  [[ -n $nodes ]] || return
  scontrol show hostnames "$nodes"
}

declare -A running left due pause began

# Takes note of the steps of one node that have ended.
collect() {
  local node code longest
  for node in "${!running[@]}"; do
    if kill -0 "${running[$node]}" 2>/dev/null; then continue; fi
    wait "${running[$node]}"
    code=$?
    unset "running[$node]"
    if ((code == 0)); then
      left[$node]=1
      say "$node: the agent left as it was told"
      continue
    fi
    if ((SECONDS - began[$node] >= 120)); then pause[$node]=1; fi
    longest=60
    if ((code == 75)); then # an agent lives there, and needs no step of ours: look again later
      longest=600
      pause[$node]=$((pause[$node] < 15 ? 15 : pause[$node]))
    fi
    due[$node]=$((SECONDS + pause[$node])) tick=1
    say "$node: the step ended with $code; trying again in ${pause[$node]} s"
    pause[$node]=$((pause[$node] * 2 > longest ? longest : pause[$node] * 2))
  done
}

# Starts an agent step on one node.
start() {
  local node=$1
  say "$node: starting an agent"
  began[$node]=$SECONDS
  : "${pause[$node]:=1}"
  "${step[@]}" --immediate=10 --nodes=1 --ntasks=1 --nodelist="$node" "${agent[@]}" &
  running[$node]=$!
}

tick=1
while [[ -z $leaving ]]; do
  collect
  if nodes=$(look); then
    missing=0
    while read -r node; do
      if [[ -n ${left[$node]:-} ]]; then continue; fi
      missing=1
      if [[ -n ${running[$node]:-} ]]; then continue; fi
      if ((${due[$node]:-0} <= SECONDS)); then start "$node"; fi
    done <<<"$nodes"
    if ((missing == 0)); then
      say 'all agents left as they were told'
      exit 0
    fi
  else
    say 'slurmctld did not answer; asking again'
  fi
  sleep "$tick" &
  wait $!
  tick=$((tick * 2 > 30 ? 30 : tick * 2))
done
wait
exit 0
