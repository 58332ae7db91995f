# A name that was asked for before it was there is there at once when it is.
. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
! test -e /srv/castore/tree || fail "there is a tree before the import"
castore-fs import "$work/tree"
test -d /srv/castore/tree || fail "the kernel keeps that there is no tree"
[ "$(ls /srv/castore)" = tree ] || fail "the root does not list what was imported"
