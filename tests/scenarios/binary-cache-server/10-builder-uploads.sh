# A closure for each compression is uploaded with a token, and comes back without one; nothing is sent twice.
. "$SCENARIOS/kit.sh"
. "$SCENARIOS/nix.sh"
files=$SCENARIOS/binary-cache-server/files
url=https://server:5443
NIX_CONFIG="$NIX_CONFIG
trusted-public-keys = $public_key
ssl-cert-file = $files/cert.pem
netrc-file = $work/netrc"

# show_token TOKEN
show_token() { printf 'machine server login nix password %s\n' "$1" >"$work/netrc"; }
# refused STATUS
refused() {
    ! $nix copy --from "$source" --to "$url?compression=zstd" "$top" 2>"$work/said" || fail "it was taken"
    grep -q "HTTP error $1" "$work/said" || fail "it says: $(cat "$work/said")"
}

# The same contents in each, so that they take room once; above the 16 MiB up to which NARs are compressed on their way.
pad='x=0123456789abcde; i=0; while [ $i -lt 20 ]; do x=$x$x; i=$((i + 1)); done; '
for compression in none xz zstd bzip2 gzip; do
    cat >"$work/closure.nix" <<NIX
let
  make = name: text: derivation {
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" text ];
  };
  large = make "large-$compression" "$pad echo \$x \$x >\$out";
in
make "top-$compression" "echo \${large} >\$out"
NIX
    top=$(build_elsewhere "$work/closure.nix")
    if [ "$compression" = none ]; then
        within 60 $nix store info --store "$url"
        : >"$work/netrc"
        refused 403
        show_token reading-token
        refused 403
        show_token wrong-token
        refused 401
    fi
    show_token writing-token
    $nix copy --from "$source" --to "$url?compression=$compression" "$top"
    $nix copy --from "$source" --to "$url?compression=$compression" "$top" 2>&1 | tee "$work/said"
    ! grep -q "copying [1-9]" "$work/said" || fail "it was uploaded again"
    : >"$work/netrc"
    # Nix remembers the narinfos that it uploaded, with the names of its own files.
    $nix copy --refresh --from "$url" --to "$work/into-$compression" "$top"
    large=$(cat "$work/source$top")
    for path in "$top" "$large"; do
        cmp "$work/source$path" "$work/into-$compression$path"
    done
    $nix store verify --store "$work/into-$compression" --recursive "$top"
    printf '%s\n' "$top" >>"$SHARED/tops"
    sha256sum "$work/source$large" | cut -d ' ' -f 1 >>"$SHARED/sums"
done
# What Nix asks of a cache without copying.
$nix path-info --store "$url" --recursive "$top" | grep -qx "$large"
$nix store ls --refresh --store "$url" -l "$large"
