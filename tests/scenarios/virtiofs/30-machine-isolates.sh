# A guest's process of its own has nothing to lose. Where there is no module, its unit is what the
# module is expected to write (tests/nixos/evaluation).
. "$SCENARIOS/kit.sh"
unit=castore-fs-virtiofs-isolated
socket=/run/castore-fs-virtiofs/isolated/socket
if ! systemctl cat "$unit.socket" >/dev/null 2>&1; then
    sed 's#@package@#/usr#' "$SCENARIOS/virtiofs/files/isolated.unit" >"/run/systemd/system/$unit.service"
    printf '[Socket]\nListenStream=%s\nSocketMode=0660\nRemoveOnStop=true\n' "$socket" >"/run/systemd/system/$unit.socket"
    systemctl daemon-reload
    systemctl start "$unit.socket"
fi
[ "$(stat -c %a "$socket")" = 660 ] || fail "the socket's mode is $(stat -c %a "$socket")"
systemctl start "$unit.service"
systemctl is-active "$unit.service"
serving=$(systemctl show --property=MainPID --value "$unit.service")
grep -q '^CapEff:[[:space:]]*0000000000000000' "/proc/$serving/status" || fail "it has privileges"
grep -q '^Seccomp:[[:space:]]*2' "/proc/$serving/status" || fail "it may make every system call"
grep -q '^NoNewPrivs:[[:space:]]*1' "/proc/$serving/status" || fail "it may gain privileges"
systemd-analyze security --no-pager --threshold=30 "$unit.service"
systemctl stop "$unit.socket" "$unit.service"
