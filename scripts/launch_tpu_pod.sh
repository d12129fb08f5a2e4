#!/usr/bin/env bash
# Run one jaxtrain command on every host of a Cloud TPU slice, from a machine with gcloud, in the checkout:
#
#   ZONE=us-central2-b scripts/launch_tpu_pod.sh NAME jaxtrain train configs/quickstart.gin --run /mnt/shared/run
#
# Copies what is committed to ~/jaxtrain on every host, installs it with the extra tpu, and runs the command. On a pod
# jaxtrain finds the other hosts by itself. The run folder must be on storage that all hosts share (a Filestore mount,
# say). Should the connection break, the command stays behind: ~/jaxtrain.log on each host has its output, and
# `STOP=1 scripts/launch_tpu_pod.sh NAME` sends it SIGTERM, upon which it saves and ends.
set -euo pipefail

if (($# < 1)) || { (($# < 2)) && [[ -z ${STOP:-} ]]; }; then
  echo "usage: [ZONE=...] [PROJECT=...] $0 NAME COMMAND [ARGUMENT...], or STOP=1 $0 NAME" >&2
  exit 2
fi
name=$1
shift
where=(--worker=all ${ZONE:+"--zone=$ZONE"} ${PROJECT:+"--project=$PROJECT"})

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$1"
}

if [[ -n ${STOP:-} ]]; then
  # shellcheck disable=SC2016 # for the hosts to expand
  on_every_host 'kill -TERM -- "-$(cat ~/jaxtrain.pid)"'
  exit
fi

archive=$(mktemp -d)/jaxtrain.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:jaxtrain.tar.gz" "${where[@]}"
on_every_host 'mkdir -p ~/jaxtrain && tar -xzf ~/jaxtrain.tar.gz -C ~/jaxtrain &&
  cd ~/jaxtrain && python3 -m pip install -q --user uv && python3 -m uv sync -q --extra tpu'

printf -v command '%q ' "$@"
# In a session of its own the command outlives the connection. What the log shows ends soon after the command does.
on_every_host "set -e; cd ~/jaxtrain; PATH=~/jaxtrain/.venv/bin:\$PATH; : > ~/jaxtrain.log
  setsid nohup $command >> ~/jaxtrain.log 2>&1 < /dev/null & run=\$!
  echo \$run > ~/jaxtrain.pid; tail -n +1 -f --pid=\$run ~/jaxtrain.log & wait \$run"
