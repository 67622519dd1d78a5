#!/bin/sh
# The first program of a test guest: loads the modules in the order in which they were packed, mounts what there is, and
# then does what it is told over the serial port, one line at a time, answering each with its exit status.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /run /m
mount -t tmpfs tmpfs /run
for module in /modules/*.ko; do insmod "$module" 2>/run/insmod || echo "insmod $module: $(cat /run/insmod)"; done
echo 3 >/proc/sys/kernel/printk
# Drivers make ports that no machine has; this one is real.
read -r console </sys/class/tty/console/active
console=${console##* }
exec </dev/$console >/dev/$console 2>&1
stty raw -echo 2>/dev/null
echo "@@ready@@"
while true; do
    read -r line || { sleep 1; continue; }
    eval "$line"
    echo "@@$?@@"
done
