# The server is gone in the middle of a NAR and stays away: reading it fails, and nothing of it is there. What came
# is still read, and the path too once the server is back.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
fault "stop 6000000 1 $(where lost)"
refused lost "Connection refused"
! systemctl is-active far.service || fail "the server did not end"
! test -e "$(mounted lost)" || fail "a part of it is there"
for name in dep mid top broken; do reads "$name"; done
systemctl is-active castore-fs.service
fault
start_far
within 60 reads lost
