# What the binary cache has is valid, with the same hashes, and nothing of it is copied.
. "$SCENARIOS/nix-store/files/kit.sh"
dep=$(cat "$work/dep") tool=$(cat "$work/tool")
nix-store --query --requisites "$tool" | sort >"$work/closure"
printf '%s\n%s\n' "$dep" "$tool" | sort | cmp - "$work/closure"
for path in "$dep" "$tool"; do
    [ "$(nix-store --query --hash "$path")" = "$(nix-store --store "$source" --query --hash "$path")" ] ||
        fail "$path has another hash"
done
$nix path-info -rsh "$tool"
$nix why-depends "$tool" "$dep" | grep -q "${dep##*/}"
$nix store verify --no-trust -r "$tool"
nix-store --verify-path "$tool" "$dep"
[ "$(cat "$tool")" = "$dep" ] || fail "it reads as something else"
! $nix path-info /nix/store/44444444444444444444444444444444-none || fail "there is what is not"
! test -e /nix/store/44444444444444444444444444444444-none || fail "there is a file of what is not"
only_below "$dep" "$tool"
