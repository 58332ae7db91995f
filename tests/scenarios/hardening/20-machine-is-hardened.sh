# The sandbox of a unit whose mount every user sees; docs/service.md has the scores.
. "$SCENARIOS/kit.sh"
systemd-analyze security --no-pager --threshold=50 castore-fs.service
# The mount is in the machine's own mount namespace.
mountpoint -q /srv/castore || fail "the sandbox hides the mount"
pid=$(systemctl show --property=MainPID --value castore-fs.service)
[ "$(readlink "/proc/$pid/ns/mnt")" = "$(readlink /proc/1/ns/mnt)" ] || fail "the daemon has a mount namespace of its own"
grep -q '^NoNewPrivs:[[:space:]]*1' "/proc/$pid/status" || fail "the daemon may gain privileges"
