. "$SCENARIOS/kit.sh"
[ "$(setpriv --reuid=65534 --regid=65534 --clear-groups cat /srv/castore/tree/file)" = hello ] ||
    fail "another user cannot read the mount"
