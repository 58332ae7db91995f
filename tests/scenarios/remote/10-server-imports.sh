. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
rm "$work/tree/large"
# Known to both machines without being sent between them.
yes castore | head -c 3000000 >"$work/tree/large"
castore-fs import "$work/tree"
