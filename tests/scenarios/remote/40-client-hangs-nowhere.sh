# What only the server could know fails soon; nothing waits for ever, and the mount stays.
. "$SCENARIOS/kit.sh"
status=0
timeout 120 cat /srv/castore/later/file >/dev/null 2>&1 || status=$?
[ "$status" = 1 ] || fail "a read that only the server could answer gave $status"
timeout 60 mountpoint -q /srv/castore || fail "the mount went with the server"
systemctl is-active castore-fs.service
