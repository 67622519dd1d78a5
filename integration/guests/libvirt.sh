#!/bin/sh
# Runs libvirtd in a root of its own, in name spaces that end with it: libvirt has its paths compiled in, and nothing of this
# machine's own libvirt, if there is one, takes part.
#
#   unshare --mount --pid --fork --kill-child libvirt.sh ROOT PART SHARED SAVES
#
# ROOT is an empty directory, PART what packages.sh unpacked, SHARED a directory that is seen inside under its own name (with all
# that is mounted in it by now), SAVES the directory where managed saves go.
set -eu
root=$1 part=$2 shared=$3 saves=$4

mount --make-rprivate /
for directory in usr dev proc sys run tmp etc/libvirt var/lib/libvirt/qemu/save var/log/libvirt/qemu var/cache/libvirt/qemu; do
    mkdir -p "$root/$directory"
done
mkdir -p "$root$shared"
for link in bin sbin lib lib64; do ln -sfn "usr/$link" "$root/$link"; done
printf 'root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nlibvirt-qemu:x:64055:\nkvm:x:105:\n' >"$root/etc/group"
cat >"$root/etc/libvirt/qemu.conf" <<'CONF'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
CONF
cat >"$root/etc/libvirt/libvirtd.conf" <<'CONF'
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
CONF

mount --rbind "$part/usr" "$root/usr"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount --rbind "$shared" "$root$shared"
mount --bind "$saves" "$root/var/lib/libvirt/qemu/save"
export PATH=/usr/sbin:/usr/bin LC_ALL=C
chroot "$root" /usr/sbin/libvirtd &
# This shell is the first process here and buries what others leave behind; libvirtd alone would wait for the dead.
wait $!
