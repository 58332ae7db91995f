. "$SCENARIOS/kit.sh"
same_tree "$work/tree" /srv/castore/tree
[ "$(/srv/castore/tree/program)" = ran ] || fail "the program on the mount does not run"
[ "$(stat -c %i /srv/castore/tree/twin-a)" != "$(stat -c %i /srv/castore/tree/twin-b)" ] ||
    fail "two directories share an inode"
! touch /srv/castore/tree/new 2>/dev/null || fail "the mount can be written to"
