# What was read is on this machine; what was not fails soon, and nothing hangs.
. "$SCENARIOS/kit.sh"
systemctl restart castore-fs.service
echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || true
same_tree "$work/tree" /srv/castore/tree
status=0
timeout 60 test -e /srv/castore/never-asked-for || status=$?
[ "$status" = 1 ] || fail "a name that only the server could know hangs"
