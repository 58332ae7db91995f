. "$SCENARIOS/nix-unreachable/files/kit.sh"
works well
[ "$(whiteouts)" = 0 ] || fail "there are whiteouts: $(ls -l "$upper")"
