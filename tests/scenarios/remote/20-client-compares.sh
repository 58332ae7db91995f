. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
yes castore | head -c 3000000 >"$work/tree/large"
# The machines start together, and the client may not have found the server yet.
within 60 test -d /srv/castore/tree
same_tree "$work/tree" /srv/castore/tree
