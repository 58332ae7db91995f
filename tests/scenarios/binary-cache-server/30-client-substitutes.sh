# A machine of the fleet: its Nix knows where the cache is and its key, and nothing else of it.
. "$SCENARIOS/kit.sh"
mkdir -p "$work/nix"
settings() {
    printf 'substituters = http://server:5000\ntrusted-public-keys = %s\n' "$1" >"$work/nix/nix.conf"
    # Debian has no users for builds.
    test -e /run/current-system || echo 'build-users-group =' >>"$work/nix/nix.conf"
}
export NIX_CONF_DIR="$work/nix"
settings other-1:nbaxLQ6U5A8RBKw1JlgzCBJEgZ5Zt6wpl/G95HPuKOM=
top=$(head -n 1 "$SHARED/tops")
! nix-store --store "$work/store" --realise "$top" 2>"$work/said" || fail "a key that is not trusted was enough"
grep -q "not signed by any of the keys" "$work/said" || fail "it says: $(cat "$work/said")"
settings scenario-1:nbaxLQ6U5A8RBKw1JlgzCBJEgZ5Zt6wpl/G95HPuKOM=
while read -r top; do
    nix-store --store "$work/store" --realise "$top"
    large=$(cat "$work/store$top")
    sum=$(sha256sum "$work/store$large" | cut -d ' ' -f 1)
    grep -qx "$sum" "$SHARED/sums" || fail "$large is another"
    nix-store --store "$work/store" --verify-path "$top" "$large"
done <"$SHARED/tops"
