# The unit is active only once the mount answers.
. "$SCENARIOS/kit.sh"
systemctl is-active castore-fs.service
mountpoint -q /srv/castore || fail "nothing is mounted on /srv/castore"
[ -z "$(ls /srv/castore)" ] || fail "a new store has something in it"
