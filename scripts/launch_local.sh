#!/usr/bin/env bash
# Run one jaxtrain command as N processes of this machine, as a cluster would: to rehearse a run of several hosts on a
# laptop, or to give every GPU a process of its own.
#
#   scripts/launch_local.sh 2 jaxtrain train configs/quickstart.gin
#
# The processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Process i takes GPU i
# where there are GPUs, and else has one CPU device, or as many as XLA_FLAGS=--xla_force_host_platform_device_count=4
# says. The first one writes to the terminal, the others with their number before each line. When one fails, the others
# are told to stop. Ctrl-C and SIGTERM reach all of them once: they save and end.
set -euo pipefail

if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PROCESSES COMMAND [ARGUMENT...]" >&2
  exit 2
fi
count=$1
shift

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

prefixed() { # numbered lines; outlives the signals that the process it reads from is still working on
  trap '' INT TERM
  while IFS= read -r line; do printf '[process %s] %s\n' "$1" "$line"; done
}

start() { # a shell around the process, which stays until the process has ended and tells of its failure
  trap : INT TERM
  local code=0
  "$@" </dev/null || code=$?
  ((code == 0)) || kill -s USR1 $$
  exit "$code"
}

# shellcheck disable=SC2329 # the traps below call it
forward() {
  local process
  for process in "${processes[@]}"; do
    kill -s "$1" -- "-$process" 2>/dev/null || true
  done
}

JAX_COORDINATOR_ADDRESS=127.0.0.1:${JAX_COORDINATOR_PORT:-$(free_port)}
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$count
processes=()
trap 'forward INT' INT
trap 'forward TERM' TERM USR1

set -m # a process group each, which a signal reaches as a whole
for ((index = 0; index < count; index++)); do
  export JAX_PROCESS_ID=$index JAX_LOCAL_DEVICE_IDS=$index
  if ((index == 0)); then
    start "$@" &
  else
    start "$@" > >(prefixed "$index") 2> >(prefixed "$index" >&2) &
  fi
  processes+=($!)
done

result=0
for process in "${processes[@]}"; do
  while true; do
    code=0
    wait "$process" || code=$?
    if ((code <= 128)) || ! kill -0 "$process" 2>/dev/null; then break; fi # else a signal was passed on: wait on
  done
  if ((code != 0)) && ((result == 0 || result > 128)); then result=$code; fi
done
exit "$result"
