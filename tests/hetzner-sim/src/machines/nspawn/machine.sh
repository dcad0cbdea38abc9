# What is done to machines, inside the namespaces of their simulator: `machine DIRECTORY GROUP VERB …`.
set -eu
cd "$1"
group=$2
verb=$3
shift 3

# network HOST ROUTER SUBNET: this namespace routes; what belongs to nobody is dropped without an answer.
network() {
  ip link set lo up
  # The gateway of every server at Hetzner.
  ip address add 172.31.1.1/32 dev lo
  ip address add "$2" peer "$1" dev uplink
  ip link set uplink up
  ip route add blackhole "$3"
  echo 1 > /proc/sys/net/ipv4/ip_forward
  # The first one prepares the folder of all, which must not happen twice at once.
  ip netns add first
}

# create ID: the machine's own network, with a cable to this one.
create() {
  ip netns add "m$1"
  ip link add "ve$1" type veth peer name eth0 netns "m$1"
}

# disk ID LAYERS: a fresh disk on these layers, joined by colons, the topmost first.
disk() {
  mkdir -p "machines/$1/root"
  mountpoint -q "machines/$1/root" && umount "machines/$1/root"
  rm -rf "machines/$1/upper" "machines/$1/work"
  mkdir "machines/$1/upper" "machines/$1/work"
  mount -t overlay -o "lowerdir=$2,upperdir=machines/$1/upper,workdir=machines/$1/work" overlay "machines/$1/root"
}

# snapshot ID IMAGE
snapshot() {
  mkdir -p snapshots
  cp -a "machines/$1/upper" "snapshots/$2"
}

# forget IMAGE
forget() {
  rm -rf "snapshots/$1"
}

# start ID ROUTER [ADDRESS]: boots, and goes on as the machine's supervisor.
start() {
  ip link set "ve$1" up
  ip -n "m$1" link set lo up
  ip -n "m$1" link set eth0 up
  if [ -n "${3:-}" ]; then
    ip -n "m$1" address replace "$3/32" dev eth0
    ip -n "m$1" route replace 172.31.1.1 dev eth0
    ip -n "m$1" route replace default via 172.31.1.1
    ip route replace "$3/32" dev "ve$1" src "$2"
  fi
  mkdir -p "$group/$1"
  echo $$ > "$group/$1/cgroup.procs"
  exec systemd-nspawn --quiet --boot --directory="machines/$1/root" --machine="m$1" --console=read-only \
    --register=no --keep-unit --settings=no --link-journal=no --resolv-conf=off --timezone=off \
    --network-namespace-path="/run/netns/m$1" --capability=CAP_NET_ADMIN \
    --bind-ro="$PWD/machines/$1/seed:/var/lib/cloud/seed/nocloud"
}

# unplug ID: nobody answers on its address any more; it has ended once its group is gone.
unplug() {
  ip link set "ve$1" down
  while [ -d "$group/$1" ]; do
    echo 1 > "$group/$1/cgroup.kill"
    find "$group/$1" -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.02
  done
}

# delete ID
delete() {
  ip link delete "ve$1"
  ip netns delete "m$1"
  umount "machines/$1/root"
  rm -rf "machines/$1"
}

"$verb" "$@"
