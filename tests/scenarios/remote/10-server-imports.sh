. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
# Known to both machines without being sent between them.
yes castore | head -c 3000000 >"$work/tree/large"
castore-fs import "$work/tree"
cp -r "$work/tree" "$work/later"
printf 'not read yet\n' >"$work/later/file"
castore-fs import "$work/later"
