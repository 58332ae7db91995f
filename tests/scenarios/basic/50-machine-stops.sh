# A stop unmounts, and a start mounts the same.
. "$SCENARIOS/kit.sh"
systemctl stop castore-fs.service
! mountpoint -q /srv/castore || fail "the mount outlives the service"
systemctl start castore-fs.service
same_tree "$work/tree" /srv/castore/tree
