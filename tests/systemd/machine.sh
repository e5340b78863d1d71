#!/bin/bash
# Boots a systemd of its own from an overlay of / and ends it, with all that runs in it, when stdin closes, which
# also happens when the test that started it dies.
#
#   machine.sh CGROUP FOLDER     FOLDER/files is laid over /; what the machine says comes to FOLDER/console
#
# Must be started in a mount namespace of its own: so nothing is left to unmount.
set -euo pipefail
cgroup=$1 folder=$2
hierarchy=$(dirname "$cgroup")

finish() {
    echo 1 >"$cgroup/cgroup.kill" || true
    wait
    for _ in {1..500}; do
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
        if [ ! -e "$cgroup" ]; then break; fi
        sleep 0.01
    done
    # Refused while somebody else needs it.
    if [ "$borrowed" = yes ]; then echo -hugetlb 2>/dev/null >"$hierarchy/cgroup.subtree_control" || true; fi
}

borrowed=no
if ! grep -qw hugetlb "$hierarchy/cgroup.subtree_control"; then
    echo +hugetlb >"$hierarchy/cgroup.subtree_control"
    borrowed=yes
fi
mkdir "$cgroup"
trap finish EXIT
mkdir "$cgroup/machine"
echo +hugetlb >"$cgroup/cgroup.subtree_control"

mount -t tmpfs -o size=1g,mode=755 machine "$folder/over"
mkdir "$folder/over/upper" "$folder/over/work" "$folder/over/root"
cp -a "$folder/files/." "$folder/over/upper/"
mount -t overlay machine "$folder/over/root" \
    -o "lowerdir=/,upperdir=$folder/over/upper,workdir=$folder/over/work"

(
    echo 0 >"$cgroup/machine/cgroup.procs"
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --directory "$folder/over/root" \
        --machine "$(basename "$cgroup")" --register=no --keep-unit --private-network --resolv-conf=off \
        --timezone=off --link-journal=no --console=pipe --boot systemd.unit=basic.target
) </dev/null >"$folder/console" 2>&1 &

cat >/dev/null
