. "$SCENARIOS/nix-unreachable/files/kit.sh"
systemctl kill --signal=SIGKILL far.service
within 30 sh -c '! systemctl is-active far.service'
works killed
# What is known to be there does not become absent: it fails.
status=0
cat /nix/store/00000000000000000000000000000000-seen/other 2>"$work/said" || status=$?
[ "$status" != 0 ] || fail "it reads what is not there"
