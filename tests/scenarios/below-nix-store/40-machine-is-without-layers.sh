. "$SCENARIOS/kit.sh"
systemctl stop castore-fs-nix-store.service
! test -e "/nix/store/00000000000000000000000000000000-tree" || fail "what was below is still there"
ls /nix/store >/dev/null || fail "the machine's own store is gone"
drop_nix_store
