# The kernel remembers for the overlay that the path was missing; the reload drops that, and the daemon
# asks again within the 5 s of its pause and the 5 s of the circuit breaker's.
. "$SCENARIOS/nix-unreachable/files/kit.sh"
systemctl kill --signal=SIGCONT far.service
castore-fs import --store "$far" --name 11111111111111111111111111111111-later "$work/tree"
within 30 look_again /nix/store/11111111111111111111111111111111-later/file
[ "$(findmnt --noheadings --output FSTYPE --mountpoint /nix/store | tail -n 1)" = overlay ] ||
    fail "the layers are gone"
! touch /nix/store/new 2>/dev/null || fail "the Nix store is writable"
