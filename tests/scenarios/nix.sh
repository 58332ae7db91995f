# For the steps of scenarios with a real Nix: `. "$SCENARIOS/nix.sh"`, after kit.sh.

nix="nix --extra-experimental-features nix-command"
# Where closures are built: in no store of this machine.
source="local?root=$work/source"
# The public half of nix-store/files/secret-key.
public_key=scenario-1:nbaxLQ6U5A8RBKw1JlgzCBJEgZ5Zt6wpl/G95HPuKOM=

# Beside what a scenario sets itself.
NIX_CONFIG='experimental-features = nix-command local-overlay-store
substituters ='
if test -e /run/current-system; then
    boxed='sandbox = true'
else
    # A sandbox gets the shell of NixOS by itself.
    boxed='sandbox = true
sandbox-paths = /bin/sh=/usr/bin/dash /lib=/usr/lib /lib64=/usr/lib64'
    NIX_CONFIG="$NIX_CONFIG
build-users-group ="
fi
export NIX_CONFIG

# in_sandbox COMMAND…
in_sandbox() {
    NIX_CONFIG="$NIX_CONFIG
$boxed" "$@"
}

# made NAME TEXT: a derivation of that name whose builder runs TEXT.
made() {
    printf 'derivation { name = "%s"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" %s ]; }' \
        "$1" "''$2''"
}

# build_elsewhere ARGUMENT…: what nix-build takes; gives the path, which is in $source then.
build_elsewhere() { NIX_REMOTE=$source in_sandbox nix-build --no-out-link "$@"; }

# built PATH: its contents in $source.
built() { printf '%s\n' "$work/source$1"; }
