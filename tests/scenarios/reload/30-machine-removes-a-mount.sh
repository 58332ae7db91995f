. "$SCENARIOS/kit.sh"
cp --remove-destination "$SCENARIOS/reload/machine.toml" /etc/castore-fs/config.toml
systemctl reload castore-fs.service
! mountpoint -q /srv/second || fail "the removed mount is still there"
same_tree "$work/tree" /srv/first/tree
