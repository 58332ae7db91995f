# The socket is there as soon as the unit is active, with the permissions that it should have. Guests that use it are
# booted by tests/system/virtiofs and by tests/nixos, each with a kernel of its own.
. "$SCENARIOS/kit.sh"
socket=/run/castore-fs/guest.sock
test -S "$socket" || fail "there is no socket"
[ "$(stat -c %a "$socket")" = 660 ] || fail "the socket's mode is $(stat -c %a "$socket")"
castore-fs status --json >"$work/status"
grep -q '"guest"' "$work/status" || fail "the device is not in the status: $(cat "$work/status")"
