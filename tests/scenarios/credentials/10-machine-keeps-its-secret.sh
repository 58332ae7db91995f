# The daemon has the token; the configuration, which every user can read, and its journal do not.
. "$SCENARIOS/kit.sh"
secret=$(cat "$SCENARIOS/credentials/secret")
! grep -rqF "$secret" /etc/castore-fs/ || fail "the secret is in the configuration"
! journalctl --unit=castore-fs.service | grep -qF "$secret" || fail "the secret is in the journal"
[ "$(cat /run/credentials/castore-fs.service/upstream)" = "$secret" ] || fail "the daemon has not the credential"
! setpriv --reuid=65534 --regid=65534 --clear-groups cat /run/credentials/castore-fs.service/upstream 2>/dev/null ||
    fail "every user can read the credential"
