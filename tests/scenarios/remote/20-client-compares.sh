. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
yes castore | head -c 3000000 >"$work/tree/large"
same_tree "$work/tree" /srv/castore/tree
