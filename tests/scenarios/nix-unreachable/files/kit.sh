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
    systemctl stop far.service 2>/dev/null || true
    rm -f /run/castore-fs-far.sock
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

# What a step does to the server before each thing that Nix does, and after it.
disturb() { :; }
settle() { :; }

# try NAME COMMAND…: within half a minute.
try() {
    trying=$1
    shift
    disturb
    timeout 30 "$@" || fail "$trying: $*"
    settle
}

# works NAME: Nix evaluates, adds, builds without and with its sandbox, copies, substitutes, lists, verifies
# and collects; and collects as many paths as it does without castore-fs.
works() {
    printf '%s\n' "$1" >"$work/$1"
    added=$(try "$1" nix-store --add "$work/$1")
    built=$(try "$1" nix-build --no-out-link -E "$(derivation "built-$1")")
    [ "$(cat "$built")" = "built-$1" ] || fail "$1: what was built is something else"
    boxed=$(NIX_CONFIG="$NIX_CONFIG
$sandbox" try "$1" nix-build --no-out-link -E "$(derivation "boxed-$1")")
    nix="nix --extra-experimental-features nix-command"
    try "$1" $nix copy --to "file://$work/cache" "$built"
    try "$1" nix-store --delete "$built"
    try "$1" nix-store --option substituters "file://$work/cache" -r "$built" >/dev/null
    try "$1" ls /nix/store >"$work/listing"
    for path in "$added" "$built" "$boxed"; do
        grep -qx "${path##*/}" "$work/listing" || fail "$1: $path is not listed"
    done
    try "$1" nix-store --verify
    # Each of these three is garbage.
    try "$1" nix-collect-garbage >"$work/collected" 2>&1
    for path in "$added" "$built" "$boxed"; do
        ! test -e "$upper/${path##*/}" || fail "$1: $path was not collected: $(cat "$work/collected")"
    done
    freed=$(sed -n 's/^\([0-9]*\) store paths deleted.*/\1/p' "$work/collected")
    test -e "$work/freed" || printf '%s\n' "$freed" >"$work/freed"
    [ "$freed" = "$(cat "$work/freed")" ] ||
        fail "$1: $freed paths were collected, and $(cat "$work/freed") without castore-fs: $(cat "$work/collected")"
    echo "$1: $(tail -n 1 "$work/collected")"
}
