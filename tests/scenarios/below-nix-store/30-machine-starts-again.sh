# A stop takes what is below away, and nothing else; after a start it is there again.
. "$SCENARIOS/kit.sh"
name=00000000000000000000000000000000-tree
systemctl stop castore-fs.service
ls /nix/store >/dev/null || fail "the machine's own store went with the daemon"
systemctl start castore-fs.service
forget
within 60 cat "/nix/store/$name/file"
same_tree "$work/tree" "/nix/store/$name"
castore-fs import --name 33333333333333333333333333333333-later "$work/tree/deep"
within 60 ls /nix/store/33333333333333333333333333333333-later
