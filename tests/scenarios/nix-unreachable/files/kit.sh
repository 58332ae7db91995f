# For the steps: Nix at work on a store that is layered over one far away.
. "$SCENARIOS/kit.sh"

export NIX_REMOTE=local NIX_CONFIG='build-users-group =
sandbox = false
substituters =
require-sigs = false'
far=local:$work/far
upper=/run/castore-fs-nix-store/store
# A sandbox gets the shell of NixOS by itself.
sandbox='sandbox = true'
test -e /run/current-system || sandbox='sandbox = true
sandbox-paths = /bin/sh=/usr/bin/dash /lib=/usr/lib /lib64=/usr/lib64'
# The server far away, which can be stopped and stand still.
start_far() {
    systemd-run --quiet --unit=far --collect \
        castore-fs serve --store "$far" --listen unix:/run/castore-fs-far.sock
    within 30 castore-fs ls --store grpc+unix:/run/castore-fs-far.sock
}

# look_again FILE: reads it, having the machine drop what it remembers as missing.
look_again() {
    systemctl reload castore-fs-nix-store.service && cat "$1"
}

# derivation NAME
derivation() {
    echo "derivation {
        name = \"$1\"; system = builtins.currentSystem; builder = \"/bin/sh\";
        args = [ \"-c\" \"echo $1 > \$out\" ];
    }"
}

# whiteouts: how many names the machine's own store hides of the one below.
whiteouts() { find "$upper" -mindepth 1 -maxdepth 1 -type c | wc -l; }

# works NAME: Nix evaluates, adds, builds without and with its sandbox, copies, substitutes, lists, verifies
# and collects, each within half a minute.
works() {
    printf '%s\n' "$1" >"$work/$1"
    added=$(timeout 30 nix-store --add "$work/$1") || fail "$1: nix-store --add"
    built=$(timeout 30 nix-build --no-out-link -E "$(derivation "built-$1")") || fail "$1: nix-build"
    [ "$(cat "$built")" = "built-$1" ] || fail "$1: what was built is something else"
    boxed=$(NIX_CONFIG="$NIX_CONFIG
$sandbox" timeout 30 nix-build --no-out-link -E "$(derivation "boxed-$1")") ||
        fail "$1: nix-build in a sandbox"
    nix="nix --extra-experimental-features nix-command"
    timeout 30 $nix copy --to "file://$work/cache" "$built" || fail "$1: nix copy"
    timeout 30 nix-store --delete "$built" || fail "$1: nix-store --delete"
    timeout 30 nix-store --option substituters "file://$work/cache" -r "$built" >/dev/null ||
        fail "$1: substitution"
    ls /nix/store >"$work/listing" || fail "$1: ls /nix/store"
    for path in "$added" "$built" "$boxed"; do
        grep -qx "${path##*/}" "$work/listing" || fail "$1: $path is not listed"
    done
    timeout 30 nix-store --verify || fail "$1: nix-store --verify"
    # Each of these three is garbage.
    timeout 30 nix-collect-garbage >"$work/collected" 2>&1 || fail "$1: nix-collect-garbage"
    for path in "$added" "$built" "$boxed"; do
        ! test -e "$upper/${path##*/}" || fail "$1: $path was not collected: $(cat "$work/collected")"
    done
    echo "$1: $(tail -n 1 "$work/collected")"
}
