# A file with a mistake in it is refused, with the mistake's place, and what was there stays.
. "$SCENARIOS/kit.sh"
cp --remove-destination "$SCENARIOS/reload/files/wrong.toml" /etc/castore-fs/config.toml
! castore-fs check-config /etc/castore-fs/config.toml 2>"$work/said" || fail "check-config finds nothing wrong"
grep -q 'list-root' "$work/said" || fail "check-config does not tell the right spelling: $(cat "$work/said")"
systemctl reload castore-fs.service || true
systemctl is-active castore-fs.service || fail "a wrong file ended the daemon"
same_tree "$work/tree" /srv/first/tree
same_tree "$work/tree" /srv/second/tree
