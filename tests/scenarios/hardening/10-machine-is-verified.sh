. "$SCENARIOS/kit.sh"
systemd-analyze verify --man=no castore-fs.service 2>"$work/verify" || fail "$(cat "$work/verify")"
! grep castore-fs "$work/verify" || fail "systemd-analyze verify objects"
