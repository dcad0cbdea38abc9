# The first process of a simulator's own namespaces: `keep DIRECTORY GROUP`.
#
# It ends when its standard input does, as with a simulator that was killed. Mounts, interfaces and addresses then go
# with the namespaces; what the kernel keeps (groups, files) is removed here.
set -u
cd "$1"
group=$2

mount -t tmpfs tmpfs /run || exit
# Machines get the unified hierarchy, also where the host mixes it with the old ones.
umount -R /sys/fs/cgroup 2> /dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir "$group" || exit
echo ready

cat > /dev/null
kill -KILL -1
for _ in 1 2 3 4 5 6 7 8 9 10; do
  find "$group" -depth -type d -exec rmdir {} + 2> /dev/null && break
  sleep 0.1
done
umount machines/*/root
rm -rf machines/* snapshots/*
case ${1##*/} in
  hetzner-sim-*) rm -rf "$1" ;;
esac
