#!/bin/bash
# First process of the lab: owns its namespaces, which end with it.
#
# Arguments: SITE=ROUTER_ADDRESS/PREFIX ... (one bridge each). It ends when its input closes, that
# is, when whoever runs the lab is gone, however that happened.
set -eu

mount -t tmpfs -o mode=755 tidegate-lab /mnt
mkdir /mnt/hosts
ip link set lo up
ip address add "$LAB_SERVICES_ADDRESS/32" dev lo
echo 1 >/proc/sys/net/ipv4/ip_forward
# Delayed packets come back through another card than the one their sender is behind.
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
for site in "$@"; do
    bridge=br-${site%%=*}
    ip link add "$bridge" type bridge
    ip address add "${site#*=}" dev "$bridge"
    ip link set "$bridge" up
done
echo ready
while read -r _; do :; done
