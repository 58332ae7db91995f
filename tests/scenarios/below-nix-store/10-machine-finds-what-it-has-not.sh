# A store path that is only in the mount is found in the Nix store.
. "$SCENARIOS/kit.sh"
name=00000000000000000000000000000000-tree
make_tree "$work/tree"
castore-fs import --name "$name" "$work/tree"
systemctl is-active castore-fs-nix-store.service
same_tree "$work/tree" "/nix/store/$name"
! test -e "/nix/store/11111111111111111111111111111111-none" || fail "there is what is not"
! touch /nix/store/new 2>/dev/null || fail "the Nix store is writable"
