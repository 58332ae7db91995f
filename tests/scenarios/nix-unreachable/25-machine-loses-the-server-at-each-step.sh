# The server is there when Nix begins with something, and killed while it is at it.
. "$SCENARIOS/nix-unreachable/files/kit.sh"
disturb() {
    start_far
    { sleep 0.1 && systemctl kill --signal=SIGKILL far.service; } &
}
settle() { wait; }
works killed-at-each-step
