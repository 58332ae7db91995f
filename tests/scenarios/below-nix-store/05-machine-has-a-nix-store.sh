. "$SCENARIOS/kit.sh"
make_nix_store
