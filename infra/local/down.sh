#!/usr/bin/env bash
# Stop only the processes that up.sh started, by the process ids that it recorded, in reverse order. The object store's
# files stay in the folder; delete the folder to remove them.
set -euo pipefail

folder=${MIBF_LOCAL:-.mibf-local}

# Print a process id and those of all its descendants: Ray's processes leave the process group that they were started in.
descendants() {
  local child
  echo "$1"
  for child in $(ps -A -o pid= -o ppid= | awk -v parent="$1" '$2 == parent { print $1 }'); do
    descendants "$child"
  done
}

alive() {
  local pid
  for pid in "$@"; do
    kill -0 "$pid" 2>/dev/null && return 0
  done
  return 1
}

end() {
  local file=$1 pid started family
  read -r pid started <"$file"
  if [ "$(ps -o lstart= -p "$pid" | xargs)" = "$(xargs <<<"$started")" ]; then
    # shellcheck disable=SC2207  # process ids contain no spaces
    family=($(descendants "$pid"))
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 80); do
      alive "${family[@]}" || break
      sleep 0.5
    done
    if alive "${family[@]}"; then kill -KILL "${family[@]}" 2>/dev/null || true; fi
    echo "stopped $(basename "$file" .pid)"
  fi
  rm -f "$file"
}

for name in ray-node-2 ray-node-1 ray-head store; do
  if [ -e "$folder/$name.pid" ]; then end "$folder/$name.pid"; fi
done
if [ -e "$folder/ray-folder" ]; then
  temporary=$(<"$folder/ray-folder")
  case $temporary in /tmp/mibf-ray.*) rm -rf "$temporary" ;; esac
  rm -f "$folder/ray-folder"
fi
