#!/bin/bash
# First process of a lab host: gives it a disk, a network card and an SSH server of its own.
#
# The disk is this machine's, copied on write into the lab's memory: what one host changes, no other
# sees. Environment: LAB_NAME, LAB_ADDRESS (with prefix), LAB_ROUTER, LAB_HOME, LAB_KEY (public),
# LAB_VENV, LAB_SET_ENV (what sshd hands to everything it starts). The host ends when this process's
# input closes or on SIGTERM, which is what `shutdown` sends.
set -eu
trap 'exit 0' TERM

folder=/mnt/hosts/$LAB_NAME
mkdir -p "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay \
    -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --bind /dev dev
mount -t tmpfs -o mode=1777,size=1g tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount --bind dev/pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
# Python's environment may lie in a folder hidden just now, or on another file system than the root.
mkdir -p "$folder/venv/upper" "$folder/venv/work" ".$LAB_VENV"
mount -t overlay overlay \
    -o "lowerdir=$LAB_VENV,upperdir=$folder/venv/upper,workdir=$folder/venv/work" ".$LAB_VENV"
pivot_root . mnt
umount -l /mnt

hostname "$LAB_NAME"
echo "$LAB_NAME" >/etc/hostname
printf '127.0.0.1 localhost\n%s %s\n' "${LAB_ADDRESS%/*}" "$LAB_NAME" >/etc/hosts
: >/etc/resolv.conf
mkdir -p "$LAB_HOME" /run/sshd /opt/tidegate
ln -sfn "$LAB_VENV" /opt/tidegate/venv
sed -i "s|^\(root:[^:]*:0:0:[^:]*\):[^:]*:|\1:$LAB_HOME:|" /etc/passwd
# Without systemd, turning the machine off is telling this process. The tool may be a link.
rm -f /usr/sbin/shutdown
printf '#!/bin/sh\nkill -TERM 1\n' >/usr/sbin/shutdown
chmod 755 /usr/sbin/shutdown

# The network card is put here from outside; the lab says when.
read -r _
ip link set lo up
ip address add "$LAB_ADDRESS" dev eth0
ip link set eth0 up
ip route add default via "$LAB_ROUTER"

[ -e /etc/ssh/lab_host_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/lab_host_key
echo "$LAB_KEY" >/etc/ssh/lab_authorized_keys
cat >/etc/ssh/lab_sshd_config <<CONFIG
HostKey /etc/ssh/lab_host_key
AuthorizedKeysFile /etc/ssh/lab_authorized_keys
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
$LAB_SET_ENV
CONFIG
: >/var/log/lab_sshd.log
/usr/sbin/sshd -D -e -f /etc/ssh/lab_sshd_config 2>/var/log/lab_sshd.log &
echo ready
while read -r _; do :; done
