# A device comes and goes with the configuration.
. "$SCENARIOS/kit.sh"
cp --remove-destination "$SCENARIOS/virtiofs/files/none.toml" /etc/castore-fs/config.toml
systemctl reload castore-fs.service
castore-fs status --json >"$work/status"
! grep -q '"guest"' "$work/status" || fail "the removed device is still in the status: $(cat "$work/status")"
cp --remove-destination "$SCENARIOS/virtiofs/machine.toml" /etc/castore-fs/config.toml
systemctl reload castore-fs.service
test -S /run/castore-fs/guest.sock || fail "the socket of the added device is not there"
castore-fs status --json >"$work/status"
grep -q '"guest"' "$work/status" || fail "the added device is not in the status: $(cat "$work/status")"
