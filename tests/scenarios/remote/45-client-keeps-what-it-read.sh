# The cache outlives the server, the daemon, and the kernel's own caches.
. "$SCENARIOS/kit.sh"
forget
same_tree "$work/tree" /srv/castore/tree
systemctl stop castore-fs.service
forget
systemctl start castore-fs.service
same_tree "$work/tree" /srv/castore/tree
