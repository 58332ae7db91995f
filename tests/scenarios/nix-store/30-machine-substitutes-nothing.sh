# What is below is there: neither a substituter nor a copy brings it again.
. "$SCENARIOS/nix-store/files/kit.sh"
dep=$(cat "$work/dep") tool=$(cat "$work/tool")
nix-store --option substituters "$cache" --realise "$tool"
$nix copy --from "$cache" "$tool" 2>&1 | tee "$work/said"
! grep -q "copying path" "$work/said" || fail "it was copied: $(cat "$work/said")"
# To another store of Nix it comes through the socket.
if test -S /run/castore-fs-nix-store.sock; then
    $nix copy --no-check-sigs --from unix:///run/castore-fs-nix-store.sock --to "local?root=$work/copy" "$tool"
    cmp "$work/copy$tool" "$tool"
    $nix store verify --store unix:///run/castore-fs-nix-store.sock -r --no-trust "$tool"
    NIX_REMOTE="local?root=$work/copy-2" in_the_open nix-store --option require-sigs false \
        --option substituters unix:///run/castore-fs-nix-store.sock --realise "$tool"
    cmp "$work/copy-2$tool" "$tool"
fi
only_below "$dep" "$tool"
